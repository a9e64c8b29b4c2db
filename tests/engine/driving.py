"""Drive a runner to the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor

from allrounder.core import ChatRequest, ChatResult
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.execution.sequence import DeviceSequence
from allrounder.engine.offline import drive
from allrounder.engine.protocols import ALL_ROWS
from allrounder.engine.scheduling.request import EngineRequest, ScheduledRows
from allrounder.models.transformers import TransformersAdapter


def scheduled(sequence: DeviceSequence, num_rows: int) -> ScheduledRows:
    return ScheduledRows(request=sequence.state, num_rows=num_rows)


def whole(sequences: Iterable[DeviceSequence]) -> list[ScheduledRows]:
    """Work for a step that computes every prompt at once."""
    return [scheduled(each, ALL_ROWS) for each in sequences]


def answers(runner: ModelRunner, requests: Sequence[ChatRequest]) -> dict[str, ChatResult]:
    """Begin all requests together and compute every prompt in one step."""
    return {
        result.request_id: result
        for result in drive(runner, requests, max_step_rows=1 << 20).results
    }


def finished(runner: ModelRunner, request: ChatRequest) -> DeviceSequence:
    """A request alone, to its end."""
    (sequence,) = begin(runner, [request])
    while runner.step(whole([sequence]))[0].result is None:
        pass
    return sequence


def recorded(
    runner: ModelRunner, adapter: TransformersAdapter, request: ChatRequest
) -> tuple[DeviceSequence, Tensor]:
    """`finished`, and the logits of each of its tokens: tokens x vocabulary."""
    seen: list[Tensor] = []
    original = adapter.logits

    def record(hidden_RD: Tensor) -> Tensor:
        seen.append(original(hidden_RD))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "logits", record)
        sequence = finished(runner, request)
    return sequence, torch.cat(seen)


def begin(runner: ModelRunner, requests: Sequence[ChatRequest]) -> list[DeviceSequence]:
    states = [EngineRequest(prepared=runner.prepare(request)) for request in requests]
    assert runner.begin(states) == [None] * len(states)
    return [state.sequence for state in states]
