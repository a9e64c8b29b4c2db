"""Drives a runner without an engine: requests begun together, stepped to their ends, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from allrounder.core import ChatRequest, ChatResult
from allrounder.engine.protocols import Outcome, Prepared, Runner, Running
from allrounder.engine.scheduling.scheduler import Scheduler
from allrounder.engine.scheduling.tickets import MAX_STEP_ROWS, Limits, Ticket
from allrounder.errors import AllrounderError


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
    on_begun: Callable[[Running], object] = lambda _: None,
) -> Drive:
    """Answer all requests, begun at once, in the steps that the scheduler composes.

    `on_begun` sees each request before its first step. Raises the typed error of the first
    request that fails.
    """
    started = time.perf_counter()
    prepared = [runner.prepare(request) for request in requests]
    ready = time.perf_counter()
    begun = prefilled = ready

    def note_begun(running: Running) -> None:
        nonlocal begun, prefilled
        on_begun(running)
        begun = prefilled = time.perf_counter()

    results: dict[str, ChatResult] = {}
    silent = {request.id for request in requests}
    for outcome in outcomes(runner, prepared, max_step_rows=max_step_rows, on_begun=note_begun):
        if outcome.error is not None:
            raise outcome.error
        if silent:
            prefilled = time.perf_counter()
            silent.discard(outcome.request_id)
        if outcome.result is not None:
            results[outcome.request_id] = outcome.result
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
    on_begun: Callable[[Running], object] = lambda _: None,
) -> Generator[Outcome]:
    """What each step does for each request, begun at once, until all have ended.

    Closing it releases what is held. Raises the typed error of the first request that cannot
    begin.
    """
    scheduler = _scheduler(runner, prepared, max_step_rows)
    live = {entry.request.id: entry for entry in map(_begun, runner.begin(prepared))}
    try:
        for running in live.values():
            on_begun(running)
        while live:
            shares = scheduler.compose()
            done = runner.step([(live[share.id], share.num_rows) for share in shares])
            scheduler.advance(shares)
            for outcome in done:
                if outcome.result is not None or outcome.error is not None:
                    scheduler.release(outcome.request_id)
                    runner.release(live.pop(outcome.request_id))
            yield from done
    finally:
        for running in live.values():
            runner.release(running)


def _scheduler(runner: Runner, prepared: Sequence[Prepared], max_step_rows: int) -> Scheduler:
    """With room for all of the requests, every one of them admitted."""
    demands = [runner.demand(each) for each in prepared]
    kv_bytes = sum(
        demand.kv_bytes(each.request.sampling.max_tokens)
        for demand, each in zip(demands, prepared, strict=True)
    )
    limits = Limits(
        max_running=len(prepared),
        max_queue=len(prepared),
        kv_bytes=kv_bytes,
        max_step_rows=max_step_rows,
        max_encoded=sum(demand.num_encoded for demand in demands),
    )
    scheduler = Scheduler(limits)
    for demand, each in zip(demands, prepared, strict=True):
        request = each.request
        scheduler.submit(
            Ticket(
                id=request.id,
                priority=request.priority,
                demand=demand,
                max_tokens=request.sampling.max_tokens,
            ),
            request.arrival,
        )
    admitted = scheduler.admit()
    assert len(admitted) == len(prepared), "the limits were made for all of them"
    return scheduler


def _begun(entry: Running | AllrounderError) -> Running:
    if isinstance(entry, AllrounderError):
        raise entry
    return entry
