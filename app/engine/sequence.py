"""One request's life on the device: what the runner knows of it between steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.core import (
    ChatRequest,
    ChatResult,
    FinishReason,
    ModelGeometry,
    Plan,
    Prompt,
    PromptShape,
    Timing,
    TokenGrid,
)
from app.cost import cost_of, kv_bytes_per_row
from app.engine.kv import SequenceKv, max_rows_held
from app.engine.ragged import Segment
from app.engine.sampling import Sampler
from app.engine.text import AnswerText
from app.models.base import Adapter
from app.pruning.allocate import Allocation
from app.pruning.base import Probe, Strategy


@dataclass(frozen=True, kw_only=True)
class PreparedPrompt:
    """A request with its prompt built and its budget resolved to a bound. Satisfies `Prepared`."""

    request: ChatRequest
    prompt: Prompt
    shape: PromptShape
    grids: tuple[TokenGrid, ...]
    strategy: Strategy
    allocation: Allocation
    seed: int

    def kv_bytes_bound(self, geometry: ModelGeometry) -> int:
        """Most bytes of KV that this request can come to hold."""
        plan, added = self.allocation.plan, self.request.sampling.max_tokens
        rows = sum(
            max_rows_held(self.shape.num_text + plan.visual_rows(idx) + added)
            for idx, runs in enumerate(plan.runs)
            if runs
        )
        return rows * kv_bytes_per_row(geometry)


@dataclass(kw_only=True)
class StageClock:
    """Seconds of this request's stages; a shared batch counts in full for each of its requests."""

    queue: float = 0.0
    encode: float = 0.0
    plan: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(kw_only=True)
class Sequence:
    """A begun request: plan, KV, sampler and text so far. Satisfies `Running`."""

    prepared: PreparedPrompt
    plan: Plan
    visual_VD: Tensor
    sampler: Sampler
    text: AnswerText
    kv: SequenceKv = field(default_factory=SequenceKv)
    clock: StageClock = field(default_factory=StageClock)
    token_ids: list[int] = field(default_factory=list)
    next_position: int = 0
    num_axes: int = 1
    prefilled: bool = False

    @property
    def request(self) -> ChatRequest:
        return self.prepared.request

    @property
    def num_generated(self) -> int:
        return len(self.token_ids)

    @property
    def awaits_selection(self) -> bool:
        """A selection past layer 0 is still open: only prefill can fill it in."""
        return any(selection.kept is None for selection in self.plan.selections)

    def decode_segment(self, adapter: Adapter) -> Segment:
        """One row: the newest token at its unpruned position."""
        position = self.next_position + len(self.token_ids) - 1
        return Segment(
            plan=self.plan,
            kv=self.kv,
            hidden_SD=adapter.embed(self.token_ids[-1:]),
            positions_PS=torch.full((self.num_axes, 1), position),
        )

    def result(self, geometry: ModelGeometry, reason: FinishReason, *, now: float) -> ChatResult:
        clock = self.clock
        return ChatResult(
            request_id=self.request.id,
            answer=self.text.text,
            finish_reason=reason,
            shape=self.prepared.shape,
            num_generated=self.num_generated,
            plan=self.plan,
            cost=cost_of(
                geometry, self.prepared.shape, self.plan, num_generated=max(self.num_generated, 1)
            ),
            budget_limit=self.prepared.allocation.limit,
            timing=Timing(
                queue=clock.queue,
                encode=clock.encode,
                plan=clock.plan,
                prefill=clock.prefill,
                decode=clock.decode,
                total=now - self.request.arrival,
            ),
            grids=self.prepared.grids,
        )


def prompt_segment(sequence: Sequence, adapter: Adapter, *, probes: tuple[Probe, ...]) -> Segment:
    """The prompt's rows; visual rows dropped at layer 0 never enter."""
    prepared = sequence.prepared
    prompt = prepared.prompt
    hidden_SD = adapter.embed(prompt.token_ids)
    visual = torch.tensor(
        [row for start, n in prompt.visual_slots for row in range(start, start + n)]
    )
    hidden_SD[visual] = sequence.visual_VD.to(hidden_SD.dtype)
    positions = adapter.positions(prompt, prepared.grids)
    sequence.next_position = positions.next
    rows_PS = positions.rows_PT
    sequence.num_axes = rows_PS.shape[0]
    plan = sequence.plan
    if plan.selections and plan.selections[0].layer_idx == 0:
        assert plan.kept is not None, "a selection at layer 0 is made before prefill"
        survives = torch.ones(len(hidden_SD), dtype=torch.bool)
        survives[visual] = False
        survives[visual[list(plan.kept)]] = True
        kept_rows = survives.nonzero()[:, 0]
        hidden_SD, rows_PS = hidden_SD[kept_rows.to(hidden_SD.device)], rows_PS[:, kept_rows]
        visual = (survives.cumsum(0) - 1)[visual[list(plan.kept)]]
    return Segment(
        plan=plan,
        kv=sequence.kv,
        hidden_SD=hidden_SD,
        positions_PS=rows_PS,
        visual_rows=visual,
        probes=probes,
    )
