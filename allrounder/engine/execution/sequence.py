"""One request's life on the device: what the runner knows of it between steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from allrounder.core import (
    ChatRequest,
    ChatResult,
    Cost,
    FinishReason,
    ImageLayout,
    ModelGeometry,
    Plan,
    Prompt,
    PromptShape,
    Selection,
    TokenChunk,
)
from allrounder.cost import cost_of, kv_bytes_per_row
from allrounder.engine.execution.kv_cache import SequenceKv, max_rows_held
from allrounder.engine.execution.rows import Rows, prompt_rows
from allrounder.engine.execution.sampling import Sampler
from allrounder.engine.execution.scores import Scores
from allrounder.engine.execution.segment import Segment
from allrounder.engine.execution.text import AnswerText
from allrounder.engine.scheduling.clock import StageClock
from allrounder.engine.scheduling.tickets import Demand
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import PromptPositions, VisualTokens
from allrounder.pruning.allocate import Allocation
from allrounder.pruning.strategy import Choice, Probe, Strategy


@dataclass(frozen=True, kw_only=True)
class PreparedPrompt:
    """A request with its prompt built and its budget resolved to a bound. Satisfies `Prepared`.

    Attributes:
        unscaled: the prompt's shape before its pictures were made smaller, if they were.
    """

    request: ChatRequest
    prompt: Prompt
    shape: PromptShape
    layouts: tuple[ImageLayout, ...]
    strategy: Strategy
    allocation: Allocation
    seed: int
    unscaled: PromptShape | None = None

    def cost(self, geometry: ModelGeometry, plan: Plan, *, num_generated: int = 1) -> Cost:
        """Of `plan`, beside the dense model on the pictures as they came."""
        cost = cost_of(geometry, self.shape, plan, num_generated=num_generated)
        if self.unscaled is None:
            return cost
        dense = Plan.dense(num_layers=geometry.num_layers, num_visual=self.unscaled.num_visual)
        whole = cost_of(geometry, self.unscaled, dense, num_generated=num_generated)
        return replace(
            cost,
            dense_prefill=whole.dense_prefill,
            dense_decode=whole.dense_decode,
            dense_kv_bytes=whole.dense_kv_bytes,
        )

    def reported(self, plan: Plan) -> Plan:
        """`plan` as the caller sees it: of scaled pictures no token is one that was there."""
        if self.unscaled is None:
            return plan
        selection = Selection(layer_idx=0, count=plan.num_visual)
        return replace(plan, num_visual=self.unscaled.num_visual, selections=(selection,))

    def demand(self, geometry: ModelGeometry) -> Demand:
        """What computing this request takes, by its bound."""
        plan, per_row = self.allocation.plan, kv_bytes_per_row(geometry)
        rows_run = (
            max_rows_held(self.shape.num_text + plan.visual_rows(idx))
            for idx, runs in enumerate(plan.runs)
            if runs
        )
        return Demand(
            num_rows=self.shape.num_text + plan.visual_rows(0),
            num_encoded=self.shape.num_visual,
            splittable=plan.last_selection_layer == 0,
            kv_prompt_bytes=sum(rows_run) * per_row,
            kv_token_bytes=plan.num_layers_run * per_row,
            cohort=plan.runs,
        )


@dataclass(kw_only=True)
class Sequence:
    """A begun request: plan, KV, sampler and text so far. Satisfies `Running`.

    Attributes:
        weights: merging weights of the selections made so far, K x C by layer.
        scores: log-probabilities, where they are asked for.
        rows: the prompt's rows while some are not yet computed.
        num_computed: how many of them are.
    """

    prepared: PreparedPrompt
    plan: Plan
    visual: VisualTokens
    sampler: Sampler
    text: AnswerText
    positions: PromptPositions
    weights: dict[int, Tensor] = field(default_factory=dict)
    kv: SequenceKv = field(default_factory=SequenceKv)
    clock: StageClock
    token_ids: list[int] = field(default_factory=list)
    scores: Scores | None = None
    rows: Rows | None = None
    num_computed: int = 0
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
        stop = min(self.num_computed + num_rows, len(self.rows))
        whole = stop - self.num_computed == len(self.rows)
        rows = self.rows if whole else self.rows.part(self.num_computed, stop)
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

    def completes(self, num_rows: int) -> bool:
        """Whether a step with so many of its rows gives the next token."""
        if self.prefilled:
            return True
        assert self.rows is not None, "a prompt that is not complete has rows"
        return self.num_computed + num_rows >= len(self.rows)

    def computed(self, num_rows: int) -> None:
        """So many rows of the prompt have been through the decoder."""
        if self.rows is None:
            return
        self.num_computed += num_rows
        if self.num_computed >= len(self.rows):
            self.rows = None
            self.prefilled = True

    def push(self, token_id: int, logits_N: Tensor) -> str:
        """A token that does not end the answer; the text that became final."""
        text = self.text.push(token_id)
        if self.scores is not None:
            self.scores.push(token_id, logits_N, num_chars=len(self.text.text))
            if self.text.stopped:
                self.scores.cut(len(self.text.text))
        return text

    def say(self, text: str) -> TokenChunk:
        """Text that became final, with the tokens that it is made of."""
        scored = self.scores.told(self.text.num_final) if self.scores else ()
        return TokenChunk(text=text, scored=scored)

    def say_rest(self, chunk: TokenChunk | None = None) -> TokenChunk:
        """The answer has ended: `chunk` and all that was held back."""
        text, scored = (chunk.text, chunk.scored) if chunk else ("", ())
        rest = self.scores.rest() if self.scores else ()
        return TokenChunk(text=text + self.text.flush(), scored=scored + rest)

    def restart(self) -> None:
        """Drop all KV, to compute prompt and answer so far anew."""
        self.kv.restart()
        self.rows = None
        self.num_computed = 0
        self.prefilled = False

    def result(self, geometry: ModelGeometry, reason: FinishReason, *, now: float) -> ChatResult:
        return ChatResult(
            request_id=self.request.answer_id or self.request.id,
            answer=self.text.text,
            finish_reason=reason,
            shape=self.prepared.unscaled or self.prepared.shape,
            num_generated=self.num_generated,
            plan=self.prepared.reported(self.plan),
            cost=self.prepared.cost(geometry, self.plan, num_generated=max(self.num_generated, 1)),
            budget_limit=self.prepared.allocation.limit,
            timing=self.clock.timing(now),
            grids=tuple(layout.grid for layout in self.prepared.layouts),
            scored=self.scores.tokens if self.scores else (),
        )
