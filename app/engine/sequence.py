"""One request's life on the device: what the runner knows of it between steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from app.core import (
    ChatRequest,
    ChatResult,
    FinishReason,
    ImageLayout,
    ModelGeometry,
    Plan,
    Prompt,
    PromptShape,
    Timing,
)
from app.cost import cost_of, kv_bytes_per_row
from app.engine.kv import SequenceKv, max_rows_held
from app.engine.ragged import Segment
from app.engine.rows import prompt_rows
from app.engine.sampling import Sampler
from app.engine.text import AnswerText
from app.models.base import Adapter
from app.models.families.base import VisualTokens
from app.pruning.allocate import Allocation
from app.pruning.base import Probe, Strategy


@dataclass(frozen=True, kw_only=True)
class PreparedPrompt:
    """A request with its prompt built and its budget resolved to a bound. Satisfies `Prepared`."""

    request: ChatRequest
    prompt: Prompt
    shape: PromptShape
    layouts: tuple[ImageLayout, ...]
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
    visual: VisualTokens
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
            grids=tuple(layout.grid for layout in self.prepared.layouts),
        )


def prompt_segment(sequence: Sequence, adapter: Adapter, *, probes: tuple[Probe, ...]) -> Segment:
    """The prompt's rows; visual rows dropped at layer 0 never enter."""
    prepared, plan = sequence.prepared, sequence.plan
    positions = adapter.positions(prepared.prompt, prepared.layouts)
    sequence.next_position = positions.next
    sequence.num_axes = len(positions.rows_PT)
    rows = prompt_rows(adapter, prepared.prompt, positions, sequence.visual, plan)
    return Segment(
        plan=plan,
        kv=sequence.kv,
        hidden_SD=rows.hidden_SD,
        positions_PS=rows.positions_PS,
        visual_rows=rows.visual_rows,
        planes=rows.planes,
        probes=probes,
        may_share=True,
    )
