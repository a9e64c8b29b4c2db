"""However a request's rows are spread over steps, its answer is the same; memory is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from allrounder.core import ChatRequest, SamplingParams
from allrounder.core.budget import Counts
from allrounder.cost import kv_bytes_per_row
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.execution.sequence import DeviceSequence
from allrounder.engine.offline import drive
from allrounder.engine.protocols import DeviceOutOfMemory
from allrounder.engine.scheduling.request import EngineRequest
from allrounder.errors import AllrounderError, EngineOutOfMemory
from allrounder.models.transformers import TransformersAdapter
from tests.cases import STRATEGIES
from tests.engine.driving import answers, begin, scheduled, whole
from tests.tiny import chat_request

NUM_TOKENS = 6


def _requests() -> list[ChatRequest]:
    """Dense, pruned before the first layer, and pruned on the way."""
    sampling = SamplingParams(max_tokens=NUM_TOKENS)
    return [
        chat_request(1, id="dense", sampling=sampling),
        chat_request(
            2,
            id="random",
            strategy="random",
            form=Counts(tokens=20, layers=4),
            sampling=sampling,
        ),
        chat_request(3, id="fastv", strategy="fastv", form=Counts(tokens=9), sampling=sampling),
        *(
            chat_request(
                seed,
                id=str(case),
                strategy=case.name,
                options=case.options,
                form=Counts(tokens=9),
                sampling=sampling,
            )
            for seed, case in enumerate(STRATEGIES, 4)
            if case.name in ("pdrop", "llavolta", "autoprune")
        ),
    ]


def _run(runner: ModelRunner, sequence: DeviceSequence, num_rows: int) -> list[int]:
    while all(outcome.result is None for outcome in runner.step([scheduled(sequence, num_rows)])):
        pass
    return sequence.token_ids


@pytest.fixture
def expected(runner: ModelRunner) -> dict[str, list[int]]:
    return {
        sequence.request.id: _run(runner, sequence, 1 << 20)
        for sequence in begin(runner, _requests())
    }


@pytest.mark.parametrize("num_rows", [1, 7, 30])
@pytest.mark.parametrize("request_id", ["dense", "random"])
def test_a_prompt_in_parts_gives_the_same_answer(
    runner: ModelRunner, expected: dict[str, list[int]], request_id: str, num_rows: int
) -> None:
    (request,) = (each for each in _requests() if each.id == request_id)
    (sequence,) = begin(runner, [request])
    assert runner.step([scheduled(sequence, num_rows)]) == []
    assert sequence.kv.row_counts() == dict.fromkeys(sequence.kv.layers, num_rows)
    assert _run(runner, sequence, num_rows) == expected[request_id]


def test_parts_of_one_prompt_share_steps_with_the_tokens_of_others(
    runner: ModelRunner, expected: dict[str, list[int]]
) -> None:
    ran = drive(runner, _requests(), max_step_rows=70)
    assert [result.request_id for result in ran.results] == list(expected)
    alone = answers(runner, _requests())
    for result in ran.results:
        assert result.answer == alone[result.request_id].answer
        assert result.cost == alone[result.request_id].cost


@pytest.mark.parametrize("num_generated", range(NUM_TOKENS))
def test_a_preempted_request_goes_on_where_it_was(
    runner: ModelRunner, expected: dict[str, list[int]], num_generated: int
) -> None:
    longer = [each for each in _requests() if len(expected[each.id]) > num_generated]
    assert longer
    for sequence in begin(runner, longer):
        for _ in range(num_generated):
            runner.step(whole([sequence]))
        runner.preempt(sequence.state)
        assert sequence.kv.bytes_held == 0
        assert runner.kv_bytes_held() == 0
        assert _run(runner, sequence, 1 << 20) == expected[sequence.request.id]


def test_a_request_preempted_amid_its_prompt_begins_it_anew(
    runner: ModelRunner, expected: dict[str, list[int]]
) -> None:
    (sequence,) = begin(runner, _requests()[:1])
    runner.step([scheduled(sequence, 10)])
    runner.preempt(sequence.state)
    assert _run(runner, sequence, 30) == expected["dense"]


def _failing(adapter: TransformersAdapter, error: Exception, *, at_call: int) -> Callable[..., Any]:
    original, calls = adapter.layer, 0

    def layer(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise error
        return original(*args)

    return layer


@pytest.mark.parametrize("num_before", [0, 2])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_step_without_memory_is_undone_and_can_be_repeated(
    runner: ModelRunner,
    adapter: TransformersAdapter,
    expected: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    num_before: int,
) -> None:
    sequences = begin(runner, _requests())
    for _ in range(num_before):
        runner.step(whole(sequences))
    before = [sequence.kv.row_counts() for sequence in sequences]
    monkeypatch.setattr(adapter, "layer", _failing(adapter, error, at_call=4))
    with pytest.raises(DeviceOutOfMemory):
        runner.step(whole(sequences))
    assert [sequence.kv.row_counts() for sequence in sequences] == before
    for sequence in sequences:
        assert _run(runner, sequence, 1 << 20) == expected[sequence.request.id]


def test_another_error_of_a_step_is_not_taken_for_a_lack_of_memory(
    runner: ModelRunner, adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "layer", _failing(adapter, RuntimeError("shape"), at_call=1))
    with pytest.raises(RuntimeError, match="shape"):
        runner.step(whole(begin(runner, _requests())))


def test_images_that_do_not_fit_the_device_even_alone_are_refused_as_such(
    runner: ModelRunner, adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(adapter, "encode", no_memory)
    states = [EngineRequest(prepared=runner.prepare(request)) for request in _requests()]
    assert all(isinstance(error, EngineOutOfMemory) for error in runner.begin(states))


def _alike(num: int) -> list[ChatRequest]:
    form = Counts(tokens=20)
    return [chat_request(seed, strategy="random", form=form, id=f"r{seed}") for seed in range(num)]


def test_requests_with_plans_of_one_shape_share_buffers_and_leave_with_their_memory(
    runner: ModelRunner, adapter: TransformersAdapter
) -> None:
    alone = {key: result.answer for key, result in answers(runner, _alike(3)).items()}
    sequences = begin(runner, _alike(3))
    runner.step(whole(sequences))
    assert len({id(sequence.kv.store) for sequence in sequences}) == 1
    rows = adapter.geometry.num_layers * sequences[0].prepared.demand.num_rows
    assert sequences[0].kv.bytes_used == rows * kv_bytes_per_row(adapter.geometry)
    held = runner.kv_bytes_held()
    runner.release(sequences[1].state)
    assert runner.kv_bytes_held() == held * 2 // 3
    left = [sequences[0], sequences[2]]
    while any(sequence.kv.bytes_held for sequence in left):
        for outcome in runner.step(whole(s for s in left if s.kv.bytes_held)):
            if outcome.result is not None:
                assert outcome.result.answer == alone[outcome.request.id]
    assert runner.kv_bytes_held() == 0


@pytest.mark.parametrize("strategy", ["pdrop", "llavolta", "autoprune"])
def test_requests_of_one_bound_share_buffers_only_if_their_counts_are_sure(
    runner: ModelRunner, strategy: str
) -> None:
    options = {"k0": 1.5, "gamma": 0.5} if strategy == "autoprune" else {}
    requests = [
        replace(
            chat_request(seed, form=Counts(tokens=12), strategy=strategy, options=options),
            question="What?",
        )
        for seed in range(3)
    ]
    sequences = begin(runner, requests)
    runner.step(whole(sequences))
    num_stores = len({id(sequence.kv.store) for sequence in sequences})
    assert num_stores == (3 if strategy == "autoprune" else 1)
    for sequence in sequences:
        runner.release(sequence.state)
    together = answers(runner, requests)
    for request in requests:
        alone = answers(runner, [request])[request.id]
        assert together[request.id].plan == alone.plan
        assert together[request.id].answer == alone.answer


def test_sharing_ends_when_requests_no_longer_grow_in_step(runner: ModelRunner) -> None:
    alone = {key: result.answer for key, result in answers(runner, _alike(3)).items()}
    sequences = begin(runner, _alike(3))
    runner.step(whole(sequences))
    runner.step(whole(sequences[:1]))
    assert len({id(sequence.kv.store) for sequence in sequences}) == 3
    found: dict[str, str] = {}
    while len(found) < 3:
        for outcome in runner.step(whole(s for s in sequences if s.request.id not in found)):
            if outcome.result is not None:
                found[outcome.request.id] = outcome.result.answer
    assert found == alone


def test_driving_gives_back_everything_when_a_request_fails(
    runner: ModelRunner, adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(adapter, "encode", broken)
    with pytest.raises(AllrounderError):
        drive(runner, _requests())
    assert runner.kv_bytes_held() == 0


def test_a_plan_request_that_does_not_fit_is_undone_too(
    runner: ModelRunner, adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(_requests()[2], id="plan", plan_only=True)
    (sequence,) = begin(runner, [request])
    with monkeypatch.context() as patch:
        error = torch.OutOfMemoryError("no")
        patch.setattr(adapter, "layer", _failing(adapter, error, at_call=2))
        with pytest.raises(DeviceOutOfMemory):
            runner.step(whole([sequence]))
    assert sequence.kv.row_counts() == {}
    assert runner.step(whole([sequence]))[0].result is not None


def test_positions_that_cannot_be_made_fail_their_own_request_only(
    runner: ModelRunner, adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, bad = adapter.positions, runner.prepare(_requests()[0])

    def positions(prompt: Any, layouts: Any) -> Any:
        if prompt is bad.prompt:
            raise RuntimeError("no positions")
        return original(prompt, layouts)

    monkeypatch.setattr(adapter, "positions", positions)
    both = [EngineRequest(prepared=each) for each in (bad, runner.prepare(_requests()[1]))]
    first, second = runner.begin(both)
    assert isinstance(first, AllrounderError)
    assert second is None
