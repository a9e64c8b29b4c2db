"""Drives a runner without an engine: requests begun together, stepped to their ends, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.core import ChatRequest, ChatResult
from app.engine.base import Runner, Running, whole
from app.errors import AllrounderError


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


def drive(runner: Runner, requests: Sequence[ChatRequest]) -> Drive:
    """Answer all requests in one batch. Raises the typed error of the first that fails."""
    started = time.perf_counter()
    prepared = [runner.prepare(request) for request in requests]
    ready = time.perf_counter()
    live = [_begun(entry) for entry in runner.begin(prepared)]
    begun = time.perf_counter()
    results: dict[str, ChatResult] = {}
    silent, prefilled = {request.id for request in requests}, begun
    try:
        while live:
            outcomes = runner.step(whole(live))
            if silent:
                prefilled = time.perf_counter()
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                if outcome.chunk is not None:
                    silent.discard(outcome.request_id)
                if outcome.result is not None:
                    results[outcome.request_id] = outcome.result
            live = [running for running in live if running.request.id not in results]
    finally:
        for running in live:
            runner.release(running)
    return Drive(
        results=tuple(results[request.id] for request in requests),
        prepare=ready - started,
        begin=begun - ready,
        prefill=prefilled - begun,
        decode=time.perf_counter() - prefilled,
    )


def _begun(entry: Running | AllrounderError) -> Running:
    if isinstance(entry, AllrounderError):
        raise entry
    return entry
