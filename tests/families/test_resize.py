"""Resizing is the dense model on a smaller picture, reported against the picture as it came."""

from __future__ import annotations

from dataclasses import replace

import pytest

from allrounder.core.budget import Counts, FlopsShare
from allrounder.engine.execution.runner import ModelRunner
from allrounder.errors import BudgetTooSmall, InvalidField
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import answers, begin
from tests.families.cases import FamilyCase
from tests.tiny import chat_request, noise_image

pytestmark = pytest.mark.timeout(200)
SHRINK = ("internvl", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def test_a_smaller_picture_is_asked_about_and_the_saving_is_that_of_the_whole(
    case: FamilyCase, adapter: TransformersAdapter, runner: ModelRunner
) -> None:
    width, height = case.sizes[-1]
    image = noise_image(1, width=width, height=height)
    total = adapter.layout(image).num_visual
    request = chat_request(
        1, images=(image,), form=Counts(tokens=total - 1), strategy="resize", id="resize"
    )
    if case.name not in SHRINK:
        with pytest.raises(InvalidField) as caught:
            runner.prepare(request)
        fixed = adapter.fixed_visual is not None
        assert caught.value.param == ("budget.strategy" if fixed else "budget")
        return
    prepared = runner.prepare(request)
    (small,) = prepared.request.images
    assert small.width / small.height == pytest.approx(width / height, rel=0.1)
    dense = chat_request(1, images=(small,), id="small")
    whole = chat_request(1, images=(image,), id="whole")
    results = answers(runner, [request, dense, whole])
    result = results["resize"]
    assert result.answer == results["small"].answer
    assert result.plan.num_visual == total == result.shape.num_visual
    assert result.plan.num_kept == adapter.layout(small).num_visual < total
    assert result.plan.kept is None
    assert not result.plan.is_dense
    assert result.cost.executed == results["small"].cost.executed
    dense_of = {each: results[each].cost.dense_prefill for each in ("resize", "whole")}
    assert dense_of["resize"] == dense_of["whole"]
    assert result.cost.saved > 0


def test_a_share_is_kept_and_an_impossible_one_is_refused(
    case: FamilyCase, adapter: TransformersAdapter, runner: ModelRunner
) -> None:
    if case.name not in SHRINK:
        return
    width, height = case.sizes[-1]
    image = noise_image(1, width=width, height=height)
    fits = FlopsShare(share=0.93)
    request = chat_request(1, images=(image,), form=fits, strategy="resize", id="resize")
    assert answers(runner, [request])["resize"].cost.prefill_ratio <= 0.93
    budget = replace(request.budget, form=Counts(tokens=1))
    with pytest.raises(BudgetTooSmall, match="fewest possible are") as caught:
        runner.prepare(replace(request, budget=budget))
    assert caught.value.param == "budget"


def test_budget_1_leaves_the_picture_alone(case: FamilyCase, runner: ModelRunner) -> None:
    if case.name == "llava":
        return
    request = chat_request(1, strategy="resize")
    (sequence,) = begin(runner, [request])
    assert sequence.prepared.request is request
    assert sequence.plan.is_dense
    runner.release(sequence.state)
