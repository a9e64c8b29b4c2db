"""The tensors of one request on the device, beside its torch-free `EngineRequest`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from allrounder.core import (
    ChatRequest,
    ChatResult,
    FinishReason,
    ModelGeometry,
    Plan,
    TokenChunk,
)
from allrounder.engine.execution.batch import Rows, Segment, prompt_rows
from allrounder.engine.execution.kv_cache import SequenceKv
from allrounder.engine.execution.sampling import AnswerText, Sampler, Scores
from allrounder.engine.planning.prepared import PreparedRequest
from allrounder.engine.scheduling.request import EngineRequest
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import ImageFeatures, PromptPositions
from allrounder.pruning.strategy import Choice, Probe, Strategy


@dataclass(kw_only=True)
class DeviceSequence:
    """A begun request: plan, KV cache, sampler and text so far.

    Attributes:
        state: its progress; the runner books there what has been computed.
        weights: merging weights of the selections made so far, K x C by layer.
        scores: log-probabilities, where they are asked for.
        rows: the prompt's rows while some are not yet computed.
    """

    state: EngineRequest
    prepared: PreparedRequest
    plan: Plan
    visual: ImageFeatures
    sampler: Sampler
    text: AnswerText
    positions: PromptPositions
    weights: dict[int, Tensor] = field(default_factory=dict)
    kv: SequenceKv = field(default_factory=SequenceKv)
    scores: Scores | None = None
    rows: Rows | None = None

    @property
    def request(self) -> ChatRequest:
        return self.prepared.request

    @property
    def token_ids(self) -> list[int]:
        return self.state.token_ids

    @property
    def awaits_selection(self) -> bool:
        """A selection past layer 0 is still open: only prefill can fill it in."""
        return not self.plan.is_chosen

    @property
    def _tokens(self) -> Strategy | None:
        return self.prepared.strategy.token_part

    @property
    def _renumbers(self) -> bool:
        return self._tokens is not None and self._tokens.renumbers

    def probes(self, geometry: ModelGeometry) -> tuple[Probe, ...]:
        return self._tokens.probes(geometry) if self._tokens else ()

    def adopt(self, plan: Plan, layer_idx: int, choice: Choice) -> None:
        """Go by `plan`, in which `choice` is the selection at `layer_idx`."""
        self.plan = plan
        if choice.weights is not None:
            self.weights[layer_idx] = choice.weights

    def prompt_segment(self, adapter: Adapter, num_rows: int) -> Segment:
        """The next rows, `num_rows` at most: the prompt, and the answer so far if preempted."""
        if self.rows is None:
            self.rows = prompt_rows(
                adapter,
                self.prepared.prompt,
                self.positions,
                self.visual,
                self.plan,
                tail_ids=self.token_ids,
                weights_KV=self.weights.get(0),
                renumber=self._renumbers,
            )
        start = self.state.num_computed
        stop = min(start + num_rows, len(self.rows))
        whole = stop - start == len(self.rows)
        rows = self.rows if whole else self.rows.part(start, stop)
        return Segment(
            plan=self.plan,
            kv=self.kv,
            hidden_SD=rows.hidden_SD,
            positions_PS=rows.positions_PS,
            visual_rows=rows.visual_rows,
            visual_ids=rows.visual_ids,
            planes=rows.planes,
            num_question=self.prepared.shape.num_question,
            renumbers=self._renumbers,
            may_share=whole and not self._may_change,
        )

    @property
    def _may_change(self) -> bool:
        """Its counts may still differ from those of its plan."""
        return self.awaits_selection and self._tokens is not None and self._tokens.adapts

    def decode_segment(self, adapter: Adapter) -> Segment:
        """One row: the newest token at its unpruned position, or at its own count of rows."""
        position = self.positions.next + len(self.token_ids) - 1
        if self._renumbers:
            position -= self.plan.num_visual - self.plan.visual_rows(0)
        return Segment(
            plan=self.plan,
            kv=self.kv,
            hidden_SD=adapter.embed(self.token_ids[-1:]),
            positions_PS=torch.full((len(self.positions.rows_PT), 1), position),
            renumbers=self._renumbers,
        )

    def computed(self, num_rows: int) -> None:
        """So many rows of the prompt have been through the decoder."""
        self.state.computed(num_rows)
        if not self.state.num_pending:
            self.rows = None

    def push(self, token_id: int, logits_N: Tensor) -> str:
        """A token that does not end the answer; the text that became final."""
        text = self.text.push(token_id)
        if self.scores is not None:
            self.scores.push(token_id, logits_N, num_chars=len(self.text.text))
            if self.text.stopped:
                self.scores.cut(len(self.text.text))
        return text

    def emit(self, text: str) -> TokenChunk:
        """Text that became final, with the tokens that it is made of."""
        scored = self.scores.emitted(self.text.num_final) if self.scores else ()
        return TokenChunk(text=text, scored=scored)

    def emit_rest(self, chunk: TokenChunk | None = None) -> TokenChunk:
        """The answer has ended: `chunk` and all that was held back."""
        text, scored = (chunk.text, chunk.scored) if chunk else ("", ())
        rest = self.scores.rest() if self.scores else ()
        return TokenChunk(text=text + self.text.flush(), scored=scored + rest)

    def restart(self) -> None:
        """Drop all KV, to compute prompt and answer so far anew."""
        self.kv.restart()
        self.rows = None
        self.state.restart()

    def result(self, reason: FinishReason, *, now: float) -> ChatResult:
        return ChatResult(
            request_id=self.request.answer_id or self.request.id,
            answer=self.text.text,
            finish_reason=reason,
            shape=self.prepared.unscaled or self.prepared.shape,
            num_generated=self.state.num_generated,
            plan=self.prepared.reported(self.plan),
            cost=self.prepared.cost(self.plan, num_generated=max(self.state.num_generated, 1)),
            budget_limit=self.prepared.allocation.limit,
            timing=self.state.clock.timing(now),
            grids=tuple(layout.grid for layout in self.prepared.layouts),
            scored=self.scores.tokens if self.scores else (),
        )
