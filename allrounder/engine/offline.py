"""Drives a runner without an engine: requests begun together, stepped to their ends, timed.

`warm_up` sends a request through every stage: before readiness, and after a fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from uuid import uuid4

from allrounder.core import BudgetRequest, ChatRequest, ChatResult, ImageInput, SamplingParams
from allrounder.core.budget import FlopsShare
from allrounder.engine.protocols import Outcome, Runner
from allrounder.engine.scheduling.request import (
    MAX_STEP_ROWS,
    EngineRequest,
    Prepared,
    SchedulerLimits,
)
from allrounder.engine.scheduling.scheduler import Scheduler


@dataclass(frozen=True, kw_only=True, slots=True)
class Drive:
    """Results in the requests' order, and seconds of wall clock.

    Attributes:
        prepare: prompts built and budgets resolved.
        begin: images encoded and plans made.
        prefill: from then until every request has its first token.
        decode: the rest.
    """

    results: tuple[ChatResult, ...]
    prepare: float
    begin: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.begin + self.prefill + self.decode


def drive(
    runner: Runner,
    requests: Sequence[ChatRequest],
    *,
    max_step_rows: int = MAX_STEP_ROWS,
    on_begun: Callable[[EngineRequest], object] = lambda _: None,
) -> Drive:
    """Answer all requests, begun at once, in the steps that the scheduler composes.

    `on_begun` sees each request before its first step. Raises the typed error of the first
    request that fails.
    """
    started = time.perf_counter()
    prepared = [runner.prepare(request) for request in requests]
    ready = time.perf_counter()
    begun = prefilled = ready

    def note_begun(request: EngineRequest) -> None:
        nonlocal begun, prefilled
        on_begun(request)
        begun = prefilled = time.perf_counter()

    results: dict[str, ChatResult] = {}
    silent = {request.id for request in requests}
    for outcome in outcomes(runner, prepared, max_step_rows=max_step_rows, on_begun=note_begun):
        if outcome.error is not None:
            raise outcome.error
        if silent:
            prefilled = time.perf_counter()
            silent.discard(outcome.request.id)
        if outcome.result is not None:
            results[outcome.request.id] = outcome.result
    return Drive(
        results=tuple(results[request.id] for request in requests),
        prepare=ready - started,
        begin=begun - ready,
        prefill=prefilled - begun,
        decode=time.perf_counter() - prefilled,
    )


def outcomes(
    runner: Runner,
    prepared: Sequence[Prepared],
    *,
    max_step_rows: int = MAX_STEP_ROWS,
    on_begun: Callable[[EngineRequest], object] = lambda _: None,
) -> Generator[Outcome]:
    """What each step does for each request, begun at once, until all have ended.

    Closing it releases what is held. Raises the typed error of the first request that cannot
    begin.
    """
    requests = [EngineRequest(prepared=each) for each in prepared]
    scheduler = _scheduler(requests, max_step_rows)
    live = {request.id: request for request in requests}
    try:
        for request, error in zip(requests, runner.begin(requests), strict=True):
            if error is not None:
                raise error
            on_begun(request)
        while live:
            done = runner.step(scheduler.compose())
            for outcome in done:
                if outcome.result is not None or outcome.error is not None:
                    scheduler.release(outcome.request.id)
                    runner.release(live.pop(outcome.request.id))
            yield from done
    finally:
        for request in live.values():
            runner.release(request)


def _scheduler(requests: Sequence[EngineRequest], max_step_rows: int) -> Scheduler:
    """With room for all of the requests, every one of them admitted."""
    scheduler = Scheduler(
        SchedulerLimits(
            max_running=len(requests),
            max_queue=len(requests),
            kv_bytes=sum(each.demand.kv_bytes(each.max_tokens) for each in requests),
            max_step_rows=max_step_rows,
            max_encoded=sum(each.demand.num_encoded for each in requests),
        )
    )
    for each in requests:
        scheduler.submit(each, each.request.arrival)
    admitted = scheduler.admit()
    assert len(admitted) == len(requests), "the limits were made for all of them"
    return scheduler


# Large enough that a family which lets the size decide has tokens to spare for a small budget.
_SIDE = 448
_PRUNED_SHARE = 0.5


def warm_up(runner: Runner) -> None:
    """Answer one dense and one pruned request. Raises whatever goes wrong."""
    smallest = runner.capabilities().smallest_budget
    for share in (1.0, max(_PRUNED_SHARE, min(2 * smallest, 1.0))):
        drive(runner, [_request(share)])


def _request(share: float) -> ChatRequest:
    pixels = bytes([128]) * (_SIDE * _SIDE * 3)
    return ChatRequest(
        id=f"warm-up-{share:g}",
        # A name of its own each time: an image that is in the cache would not be encoded.
        images=(ImageInput(width=_SIDE, height=_SIDE, rgb=pixels, digest=uuid4().hex),),
        question="What is there?",
        budget=BudgetRequest(form=FlopsShare(share=share), requested=share),
        sampling=SamplingParams(max_tokens=2),
        arrival=time.monotonic(),
    )
