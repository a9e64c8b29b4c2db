"""What the scheduler knows of a request, and what it asks of a step. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from allrounder.core import Priority

KV_LOOKAHEAD_TOKENS = 32
MAX_STEP_ROWS = 2048
MAX_ENCODED_TOKENS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What computing one request takes, known before it begins.

    Attributes:
        num_rows: prompt rows that enter the decoder under its plan.
        num_encoded: visual tokens to encode, before pruning.
        splittable: its prompt may be computed in parts; not so where a strategy looks on the way.
        kv_prompt_bytes: most KV that the prompt can hold, room for growth included.
        kv_token_bytes: KV of each generated token.
        cohort: equal for requests that probably run the same layers.
    """

    num_rows: int
    num_encoded: int = 0
    splittable: bool = True
    kv_prompt_bytes: int = 0
    kv_token_bytes: int = 0
    cohort: Hashable = None

    def kv_bytes(self, num_generated: int) -> int:
        """Most KV held once `num_generated` tokens have been generated."""
        return self.kv_prompt_bytes + num_generated * self.kv_token_bytes

    def most_tokens(self, kv_bytes: int) -> int:
        """How long an answer can become in so many bytes of KV; below 1 where none fits."""
        return (kv_bytes - self.kv_prompt_bytes) // max(self.kv_token_bytes, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """One request in the queue. `deadline` is in monotonic seconds, or None."""

    id: str
    priority: Priority
    demand: Demand
    max_tokens: int
    deadline: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the device can take.

    Attributes:
        max_step_rows: rows of one forward pass; one of each running request always fits.
        max_encoded: unpruned visual tokens encoded between two steps, unless one image has more.
    """

    max_running: int
    max_queue: int
    kv_bytes: int
    max_step_rows: int = MAX_STEP_ROWS
    max_encoded: int = MAX_ENCODED_TOKENS


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One request's part of a step: `num_rows` of its prompt, or one generated token's row."""

    id: str
    num_rows: int


@dataclass(kw_only=True, slots=True)
class Entry:
    """A ticket on its way. Owned by the scheduler.

    Attributes:
        turn: order of submission; kept by a preempted request.
        passes: how often a younger request of another cohort went first.
        num_pending: prompt rows (after a preemption, generated ones too) not yet computed.
    """

    ticket: Ticket
    turn: int
    passes: int = 0
    admitted: int = 0
    num_generated: int = 0
    num_pending: int = 0
    was_preempted: bool = False

    @property
    def is_batch(self) -> bool:
        return self.ticket.priority is Priority.BATCH

    @property
    def kv_reserved(self) -> int:
        """Bytes set aside: the prompt, the tokens there are, and some to come."""
        ahead = min(self.num_generated + KV_LOOKAHEAD_TOKENS, self.ticket.max_tokens)
        return self.ticket.demand.kv_bytes(max(ahead, self.num_generated))
