"""The cost of a plan, choosing included, is what torch counts on the real forward."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allrounder.core import SamplingParams
from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.transformers import TransformersAdapter
from tests.cases import STRATEGIES, StrategyCase
from tests.engine.driving import answers
from tests.tiny import NUM_VISUAL, chat_request

pytestmark = pytest.mark.timeout(90)
NUM_PLANS = 4
NUM_SHORT = 1


@pytest.mark.parametrize("case", STRATEGIES, ids=str)
def test_the_cost_of_random_plans_is_what_torch_counts(
    case: StrategyCase, runner: ModelRunner, adapter: TransformersAdapter, long_form: bool
) -> None:
    draw = random.Random(str(case))
    for seed in range(NUM_PLANS if long_form else NUM_SHORT):
        tokens = draw.randint(1, NUM_VISUAL - 1) if case.prunes_tokens else None
        layers = draw.randint(5, 6) if case.prunes_layers else None
        request = chat_request(
            seed,
            form=Counts(tokens=tokens, layers=layers),
            strategy=case.name,
            options=case.options,
            question="?" * draw.randint(1, 60),
            sampling=SamplingParams(max_tokens=draw.randint(1, 12)),
        )
        with sdpa_kernel(SDPBackend.MATH):
            encoder = FlopCounterMode(display=False)
            with encoder, torch.inference_mode():
                adapter.encode(request.images)
            whole = FlopCounterMode(display=False)
            with whole:
                result = answers(runner, [request])[request.id]
        counted = whole.get_total_flops() - encoder.get_total_flops()
        pruned = tokens is not None and not result.plan.is_dense
        loops = case.loops(result.shape, tokens) if tokens and pruned else 0
        assert result.cost.executed - loops == pytest.approx(counted, rel=0.01)


def test_the_dense_counterfactual_is_what_torch_counts(
    runner: ModelRunner, adapter: TransformersAdapter
) -> None:
    pruned = chat_request(1, form=Counts(tokens=9), strategy="random")
    cost = answers(runner, [pruned])[pruned.id].cost
    num_generated = 8
    request = chat_request(2, sampling=SamplingParams(max_tokens=num_generated))
    with sdpa_kernel(SDPBackend.MATH):
        encoder = FlopCounterMode(display=False)
        with encoder, torch.inference_mode():
            adapter.encode(request.images)
        whole = FlopCounterMode(display=False)
        with whole:
            dense = answers(runner, [request])[request.id]
    assert dense.num_generated == num_generated
    counted = whole.get_total_flops() - encoder.get_total_flops()
    assert dense.cost.executed == pytest.approx(counted, rel=0.01)
    assert dense.cost.dense == dense.cost.executed
    assert cost.saved == cost.saved_by_tokens + cost.saved_by_layers - cost.router
