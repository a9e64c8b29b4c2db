"""A runner without a model: the words of the question are the answer's tokens.

All that stands above the runner's protocol can be driven with it; no torch, no weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast

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
from allrounder.engine.protocols import CacheCounts, DeviceOutOfMemory, Outcome, Prepared, Running
from allrounder.engine.scheduling.clock import StageClock
from allrounder.engine.scheduling.tickets import Demand
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


@dataclass(kw_only=True, slots=True)
class FakeRunning:
    request: ChatRequest
    shape: PromptShape
    plan: Plan
    words: tuple[str, ...]
    clock: StageClock
    num_generated: int = 0
    answer: str = ""
    scored: tuple[ScoredToken, ...] = ()
    num_pending: int = 0
    num_held: int = 0

    def restart(self) -> None:
        """Nothing is held; prompt and answer so far are to be computed."""
        self.num_pending = _num_rows(self.shape, self.plan) + self.num_generated
        self.num_held = 0


@dataclass(kw_only=True)
class FakeRunner:
    """Answers with the question's own words.

    Attributes:
        step_seconds: how long each step blocks its thread.
        faults: by question, what goes wrong in its first step. A typed error fails that request
            alone, any other exception the whole step; `DeviceLost` every step from then on.
        running: what holds memory now, by request id.
        max_rows: rows of a step beyond which the fake device runs out of memory.
        most_bytes: the most KV that was ever held.
    """

    step_seconds: float = 0.0
    faults: Mapping[str, Exception] = field(default_factory=lambda: NO_FAULTS)
    running: dict[str, FakeRunning] = field(default_factory=dict)
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

    def begin(self, batch: Sequence[Prepared]) -> list[Running | AllrounderError]:
        return [self._begin_one(prepared) for prepared in batch]

    def demand(self, prepared: Prepared) -> Demand:
        assert isinstance(prepared, FakePrepared)
        num_rows = _num_rows(prepared.shape, prepared.plan)
        return Demand(
            num_rows=num_rows,
            num_encoded=prepared.shape.num_visual,
            kv_prompt_bytes=num_rows * KV_BYTES_ROW,
            kv_token_bytes=KV_BYTES_ROW,
            cohort=prepared.plan.runs,
        )

    def step(self, work: Sequence[tuple[Running, int]]) -> list[Outcome]:
        if self.is_lost:
            raise DeviceLost
        shares = [(cast(FakeRunning, running), num_rows) for running, num_rows in work]
        if self.step_seconds:
            time.sleep(self.step_seconds)
        if sum(min(rows, running.num_pending or 1) for running, rows in shares) > self.max_rows:
            raise DeviceOutOfMemory
        outcomes = [self._compute(running, num_rows) for running, num_rows in shares]
        self.most_bytes = max(self.most_bytes, self.kv_bytes_held())
        return [outcome for outcome in outcomes if outcome is not None]

    def preempt(self, running: Running) -> None:
        assert isinstance(running, FakeRunning)
        running.restart()

    def finish(self, running: Running, reason: FinishReason) -> ChatResult:
        assert isinstance(running, FakeRunning)
        self.release(running)
        request, form = running.request, running.request.budget.form
        cost = cost_of(GEOMETRY, running.shape, running.plan, num_generated=running.num_generated)
        return ChatResult(
            request_id=request.answer_id or request.id,
            answer=running.answer,
            finish_reason=reason,
            shape=running.shape,
            num_generated=running.num_generated,
            plan=running.plan,
            cost=cost,
            budget_limit=form.share if isinstance(form, FlopsShare) else cost.prefill_ratio,
            timing=running.clock.timing(time.monotonic()),
            grids=(GRID,) * len(request.images),
            scored=running.scored,
        )

    def release(self, running: Running) -> None:
        self.running.pop(running.request.id, None)

    def kv_bytes_held(self) -> int:
        return KV_BYTES_ROW * sum(each.num_held for each in self.running.values())

    def kv_bytes_limit(self) -> int:
        return self.max_kv_bytes

    def encoder_cache(self) -> CacheCounts:
        return CacheCounts()

    def _begin_one(self, prepared: Prepared) -> FakeRunning:
        assert isinstance(prepared, FakePrepared)
        begun = FakeRunning(
            request=prepared.request,
            shape=prepared.shape,
            plan=prepared.plan,
            words=_words(prepared.request.question),
            clock=StageClock(arrival=prepared.request.arrival),
        )
        for stage in (Stage.ENCODE, Stage.PLAN, Stage.PREFILL):
            begun.clock.enters(stage, time.monotonic())
        begun.restart()
        self.running[prepared.request.id] = begun
        return begun

    def _compute(self, running: FakeRunning, num_rows: int) -> Outcome | None:
        if running.num_pending:
            done = min(num_rows, running.num_pending)
            running.num_pending -= done
            running.num_held += done
        else:
            running.num_held += 1
        return None if running.num_pending else self._advance(running)

    def _advance(self, running: FakeRunning) -> Outcome:
        request = running.request
        fault = self.faults.get(request.question)
        if isinstance(fault, AllrounderError):
            self.release(running)
            return Outcome(request_id=request.id, error=fault)
        if fault is not None:
            self.is_lost = isinstance(fault, DeviceLost)
            raise fault
        if request.plan_only:
            return Outcome(request_id=request.id, result=self.finish(running, FinishReason.STOP))
        running.clock.enters(Stage.DECODE, time.monotonic())
        text, reason = _next(running)
        chunk = TokenChunk(text=text, scored=_scored(text, request.sampling.top_logprobs))
        running.scored += chunk.scored
        running.answer += text
        running.num_generated += 1
        result = None if reason is None else self.finish(running, reason)
        return Outcome(request_id=request.id, chunk=chunk, result=result)


def _num_rows(shape: PromptShape, plan: Plan) -> int:
    return shape.num_text + plan.num_kept


def _words(question: str) -> tuple[str, ...]:
    words = question.split() or ["-"]
    return (words[0], *(f" {word}" for word in words[1:]))


def _next(running: FakeRunning) -> tuple[str, FinishReason | None]:
    """The next word, cut at a stop string, and why it is the last one, if it is."""
    word, sampling = running.words[running.num_generated], running.request.sampling
    grown = running.answer + word
    ends = [found for stop in sampling.stop if (found := grown.find(stop)) >= 0]
    if ends:
        return grown[len(running.answer) : min(ends)], FinishReason.STOP
    if running.num_generated + 1 == len(running.words):
        return word, FinishReason.STOP
    if running.num_generated + 1 == sampling.max_tokens:
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
