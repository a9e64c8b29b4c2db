"""A runner without a model: the words of the question are the answer's tokens.

All that stands above the runner's protocol can be driven with it; no torch, no weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from allrounder.core import (
    Capabilities,
    ChatRequest,
    ChatResult,
    FinishReason,
    ModelGeometry,
    Plan,
    PromptShape,
    ScoredToken,
    Selection,
    Stage,
    StrategyInfo,
    TokenChunk,
    TokenGrid,
)
from allrounder.core.budget import Counts, FlopsShare, Quality
from allrounder.cost import cost_of
from allrounder.engine.protocols import CacheCounts, DeviceOutOfMemory, Outcome
from allrounder.engine.scheduling.request import Demand, EngineRequest, ScheduledRows
from allrounder.errors import AllrounderError, BudgetTooSmall, InvalidField

GRID = TokenGrid(rows=4, cols=4)
STRATEGIES = ("none", "fake")
GEOMETRY = ModelGeometry(
    num_layers=4,
    width=32,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    mlp_width=64,
    vocab_size=100,
    max_positions=4096,
)
KV_BYTES_ROW = 32
NO_FAULTS: Mapping[str, Exception] = MappingProxyType({})


class DeviceLost(Exception):
    """A fault from which the fake device does not come back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakePrepared:
    request: ChatRequest
    shape: PromptShape
    plan: Plan

    @property
    def demand(self) -> Demand:
        num_rows = self.shape.num_text + self.plan.num_kept
        return Demand(
            num_rows=num_rows,
            num_encoded=self.shape.num_visual,
            kv_prompt_bytes=num_rows * KV_BYTES_ROW,
            kv_token_bytes=KV_BYTES_ROW,
            layer_signature=self.plan.runs,
        )


@dataclass(kw_only=True, slots=True)
class FakeSequence:
    """What the fake device holds of a request."""

    words: tuple[str, ...]
    answer: str = ""
    scored: tuple[ScoredToken, ...] = ()
    num_held: int = 0


@dataclass(kw_only=True)
class FakeRunner:
    """Answers with the question's own words.

    Attributes:
        step_seconds: how long each step blocks its thread.
        faults: by question, what goes wrong in its first step. A typed error fails that request
            alone, any other exception the whole step; `DeviceLost` every step from then on.
        running: the requests that hold memory now, by id.
        max_rows: rows of a step beyond which the fake device runs out of memory.
        most_bytes: the most KV that was ever held.
    """

    step_seconds: float = 0.0
    faults: Mapping[str, Exception] = field(default_factory=lambda: NO_FAULTS)
    running: dict[str, EngineRequest] = field(default_factory=dict)
    is_lost: bool = False
    max_kv_bytes: int = 2**20
    max_rows: int = 2**20
    most_bytes: int = 0

    def capabilities(self) -> Capabilities:
        return Capabilities(
            model="fake",
            family="fake",
            fingerprint="0" * 16,
            geometry=GEOMETRY,
            device="cpu",
            dtype="float32",
            visual_tokens=GRID.rows * GRID.cols,
            max_images=16,
            router=None,
            default_strategy="fake",
            strategies=tuple(
                StrategyInfo(name=name, prunes_tokens=name != "none", prunes_layers=False)
                for name in STRATEGIES
            ),
            smallest_budget=0.4,
        )

    def prepare(self, request: ChatRequest) -> FakePrepared:
        visual = (GRID.rows * GRID.cols,) * len(request.images)
        shape = PromptShape(num_text=8 + len(request.question.split()), visual_per_image=visual)
        return FakePrepared(request=request, shape=shape, plan=_plan(request, shape))

    def begin(self, batch: Sequence[EngineRequest]) -> list[AllrounderError | None]:
        for request in batch:
            request.sequence = FakeSequence(words=_words(request.request.question))
            for stage in (Stage.ENCODE, Stage.PLAN, Stage.PREFILL):
                request.clock.enters(stage, time.monotonic())
            self.running[request.id] = request
        return [None] * len(batch)

    def step(self, work: Sequence[ScheduledRows]) -> list[Outcome]:
        if self.is_lost:
            raise DeviceLost
        if self.step_seconds:
            time.sleep(self.step_seconds)
        if sum(min(each.num_rows, each.request.num_pending or 1) for each in work) > self.max_rows:
            raise DeviceOutOfMemory
        outcomes = [self._compute(each.request, each.num_rows) for each in work]
        self.most_bytes = max(self.most_bytes, self.kv_bytes_held())
        return [outcome for outcome in outcomes if outcome is not None]

    def preempt(self, request: EngineRequest) -> None:
        request.restart()
        request.sequence.num_held = 0

    def finish(self, request: EngineRequest, reason: FinishReason) -> ChatResult:
        self.release(request)
        prepared, sequence, asked = request.prepared, request.sequence, request.request
        assert isinstance(prepared, FakePrepared)
        plan, form = prepared.plan, asked.budget.form
        cost = cost_of(GEOMETRY, prepared.shape, plan, num_generated=request.num_generated)
        return ChatResult(
            request_id=asked.answer_id or asked.id,
            answer=sequence.answer,
            finish_reason=reason,
            shape=prepared.shape,
            num_generated=request.num_generated,
            plan=plan,
            cost=cost,
            budget_limit=form.share if isinstance(form, FlopsShare) else cost.prefill_ratio,
            timing=request.clock.timing(time.monotonic()),
            grids=(GRID,) * len(asked.images),
            scored=sequence.scored,
        )

    def release(self, request: EngineRequest) -> None:
        self.running.pop(request.id, None)

    def kv_bytes_held(self) -> int:
        return sum(KV_BYTES_ROW * int(each.sequence.num_held) for each in self.running.values())

    def kv_bytes_limit(self) -> int:
        return self.max_kv_bytes

    def encoder_cache(self) -> CacheCounts:
        return CacheCounts()

    def _compute(self, request: EngineRequest, num_rows: int) -> Outcome | None:
        completes = request.completes(num_rows)
        request.sequence.num_held += min(num_rows, request.num_pending) or 1
        request.computed(num_rows)
        return self._advance(request) if completes else None

    def _advance(self, entry: EngineRequest) -> Outcome:
        request, sequence = entry.request, entry.sequence
        fault = self.faults.get(request.question)
        if isinstance(fault, AllrounderError):
            self.release(entry)
            return Outcome(request=entry, error=fault)
        if fault is not None:
            self.is_lost = isinstance(fault, DeviceLost)
            raise fault
        if request.plan_only:
            return Outcome(request=entry, result=self.finish(entry, FinishReason.STOP))
        entry.clock.enters(Stage.DECODE, time.monotonic())
        text, reason = _next(entry)
        chunk = TokenChunk(text=text, scored=_scored(text, request.sampling.top_logprobs))
        sequence.scored += chunk.scored
        sequence.answer += text
        entry.token_ids.append(entry.num_generated)
        result = None if reason is None else self.finish(entry, reason)
        return Outcome(request=entry, chunk=chunk, result=result)


def _words(question: str) -> tuple[str, ...]:
    words = question.split() or ["-"]
    return (words[0], *(f" {word}" for word in words[1:]))


def _next(request: EngineRequest) -> tuple[str, FinishReason | None]:
    """The next word, cut at a stop string, and why it is the last one, if it is."""
    sequence, sampling = request.sequence, request.request.sampling
    word: str = sequence.words[request.num_generated]
    grown = sequence.answer + word
    ends = [found for stop in sampling.stop if (found := grown.find(stop)) >= 0]
    if ends:
        return grown[len(sequence.answer) : min(ends)], FinishReason.STOP
    if request.num_generated + 1 == len(sequence.words):
        return word, FinishReason.STOP
    if request.num_generated + 1 == sampling.max_tokens:
        return word, FinishReason.LENGTH
    return word, None


def _scored(text: str, num_top: int | None) -> tuple[ScoredToken, ...]:
    token = ScoredToken(content=text.encode(), logprob=math.log(0.5))
    return () if num_top is None else (replace(token, top=(token,) * min(num_top, 1)),)


def _plan(request: ChatRequest, shape: PromptShape) -> Plan:
    budget = request.budget
    if budget.strategy not in (None, *STRATEGIES):
        raise InvalidField(
            f"budget.strategy: unknown strategy; known: {', '.join(STRATEGIES)}",
            param="budget.strategy",
        )
    if isinstance(budget.form, Counts):
        tokens, layers = budget.form.tokens, budget.form.layers
        return _pruned(shape, shape.num_visual if tokens is None else tokens, layers)
    if isinstance(budget.form, Quality):
        return _loyal(shape, budget.form, budget.min_tokens)
    fewest = min(budget.min_tokens, shape.num_visual)
    for count in range(shape.num_visual, fewest - 1, -1):
        plan = _pruned(shape, count, None)
        if budget.form.allows(cost_of(GEOMETRY, shape, plan)):
            return plan
    smallest = cost_of(GEOMETRY, shape, _pruned(shape, fewest, None)).prefill_ratio
    raise BudgetTooSmall(f"budget: the smallest possible value is {smallest:.4f}", param="budget")


def _loyal(shape: PromptShape, form: Quality, min_tokens: int) -> Plan:
    """The fewest tokens; so loyal as the share that is kept is the fake's calibration."""
    for count in range(min_tokens, shape.num_visual):
        plan = replace(_pruned(shape, count, None), loyalty=count / shape.num_visual)
        if form.allows(cost_of(GEOMETRY, shape, plan)):
            return plan
    return replace(_pruned(shape, shape.num_visual, None), loyalty=1.0)


def _pruned(shape: PromptShape, count: int, num_layers: int | None) -> Plan:
    """Keep the first `count` visual tokens and run the first `num_layers` layers."""
    runs = tuple(num_layers is None or idx < num_layers for idx in range(GEOMETRY.num_layers))
    kept = tuple(range(min(count, shape.num_visual)))
    if len(kept) == shape.num_visual and all(runs):
        return Plan.dense(num_layers=len(runs), num_visual=shape.num_visual)
    selection = Selection(layer_idx=0, count=len(kept), kept=kept)
    return Plan(strategy="fake", num_visual=shape.num_visual, runs=runs, selections=(selection,))
