"""On a CUDA device: the same answers as on the CPU, and memory faults that are survived."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from allrounder.core import ChatRequest
from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.offline import drive
from allrounder.models.loading import load_adapter
from tests.engine.driving import finished
from tests.families.cases import FAMILIES, FamilyCase
from tests.families.reference import Reference, assert_same_tokens
from tests.tiny import chat_request, noise_image

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


def _requests(case: FamilyCase) -> list[ChatRequest]:
    width, height = case.sizes[0]
    images = (noise_image(1, width=width, height=height),)
    forms = (("none", None), ("random", Counts(tokens=5, layers=5)), ("fastv", Counts(tokens=5)))
    return [
        chat_request(idx, id=name, images=images, strategy=name, form=form)
        for idx, (name, form) in enumerate(forms)
    ]


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_in_float32_each_plan_answers_as_the_masked_library_does(
    case: FamilyCase, tmp_path: Path
) -> None:
    folder = case.build(tmp_path / "model")
    runner = ModelRunner(load_adapter(str(folder), device="cuda", dtype="float32"))
    reference = Reference(folder)
    for request in _requests(case):
        running = finished(runner, request)
        theirs = reference.logits(request, running.token_ids, running.plan)
        assert_same_tokens(running.token_ids, theirs.argmax(-1).tolist(), theirs)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_the_default_format_answers_in_mixed_batches(case: FamilyCase, tmp_path: Path) -> None:
    runner = ModelRunner(load_adapter(str(case.build(tmp_path / "model")), device="cuda"))
    ran = drive(runner, _requests(case), max_step_rows=64)
    assert all(result.num_generated for result in ran.results)
    assert runner.kv_bytes_held() == 0


def test_a_real_lack_of_memory_is_told_from_other_faults() -> None:
    from allrounder.engine.execution.kv_cache import is_out_of_memory

    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 48, device="cuda")
    assert is_out_of_memory(caught.value)
