"""Drive a runner to the end."""

from __future__ import annotations

from collections.abc import Sequence

from app.core import ChatRequest, ChatResult
from app.engine.base import whole
from app.engine.runner import ModelRunner
from app.engine.sequence import Sequence as DeviceSequence
from app.errors import AllrounderError


def answers(runner: ModelRunner, requests: Sequence[ChatRequest]) -> dict[str, ChatResult]:
    """Begin all requests together and step until each has ended."""
    live = begin(runner, requests)
    results: dict[str, ChatResult] = {}
    while live:
        for outcome in runner.step(whole(live)):
            assert outcome.error is None
            if outcome.result is not None:
                results[outcome.request_id] = outcome.result
        live = [sequence for sequence in live if sequence.request.id not in results]
    return results


def begin(runner: ModelRunner, requests: Sequence[ChatRequest]) -> list[DeviceSequence]:
    begun = []
    for entry in runner.begin([runner.prepare(request) for request in requests]):
        assert not isinstance(entry, AllrounderError), entry
        assert isinstance(entry, DeviceSequence)
        begun.append(entry)
    return begun
