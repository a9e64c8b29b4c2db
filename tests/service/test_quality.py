"""Quality over HTTP with a real model, its router and its calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from allrounder.router.network import MetaRouter, RouterConfig
from allrounder.router.weights import Calibration, LoadedRouter, Loyalty, load_router, save_router
from tests.api.calls import chat_body, problem
from tests.api.conftest import serving
from tests.tiny import NUM_VISUAL, tiny_llava_folder

pytestmark = pytest.mark.timeout(60)
LOYALTY = Loyalty(
    num_samples=100,
    mean=((0.5, 0.97, 1.0), (0.4, 0.85, 0.9)),
    standard_error=((0.05, 0.01, 0.0), (0.05, 0.02, 0.02)),
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> TransformersAdapter:
    folder = tiny_llava_folder(tmp_path_factory.mktemp("models") / "tiny")
    return load_adapter(str(folder), device="cpu")


def _router(folder: Path, adapter: TransformersAdapter, loyalty: Loyalty | None) -> LoadedRouter:
    torch.manual_seed(0)
    geometry = adapter.geometry
    config = RouterConfig(model_width=geometry.width, candidates=(3, 4, 5), width=8, num_heads=2)
    save_router(
        folder,
        MetaRouter(config),
        model="tiny",
        fingerprint=adapter.fingerprint,
        geometry=geometry,
        training={},
        calibration=Calibration(
            block_influence=(0.1,) * geometry.num_layers,
            skip_ratios=(0.0, 0.5),
            token_ratios=(0.1, 0.5, 1.0),
            kl_nats=((0.5, 0.1, 0.0), (0.8, 0.5, 0.3)),
            loyalty=loyalty,
        ),
    )
    return load_router(folder, fingerprint=adapter.fingerprint, geometry=geometry)


async def test_more_quality_costs_more_and_a_plan_is_what_a_chat_does(
    adapter: TransformersAdapter, tmp_path: Path
) -> None:
    runner = ModelRunner(adapter, _router(tmp_path, adapter, LOYALTY))
    ratios, kept = [], []
    async with serving(runner) as served:
        for quality in (0.8, 0.95, 1):
            body = chat_body(budget={"quality": quality}, max_tokens=2)
            chat = (await served.client.post("/v1/chat", json=body)).json()["pruning"]
            plan = (await served.client.post("/v1/plan", json=body)).json()["pruning"]
            assert chat["budget"] == plan["budget"]
            assert chat["visual_tokens"] == plan["visual_tokens"]
            assert chat["budget"]["expected_loyalty"] >= quality
            assert chat["flops"]["prefill_ratio"] <= chat["budget"]["limit"]
            ratios.append(chat["flops"]["prefill_ratio"])
            kept.append((chat["visual_tokens"]["kept"], chat["layers"]["run"]))
    assert ratios == sorted(ratios)
    assert kept == [(NUM_VISUAL // 2, 3), (NUM_VISUAL // 2, 6), (NUM_VISUAL, 6)]


@pytest.mark.parametrize(
    ("budget", "param"),
    [
        ({"quality": 0.9}, "budget.quality"),
        ({"quality": 0.9, "strategy": "fastv"}, "budget.strategy"),
    ],
)
async def test_quality_without_its_calibration_is_refused_before_a_stream_starts(
    adapter: TransformersAdapter, tmp_path: Path, budget: dict, param: str
) -> None:
    runner = ModelRunner(adapter, _router(tmp_path, adapter, None))
    async with serving(runner) as served:
        for path, stream in (("/v1/chat", False), ("/v1/chat", True), ("/v1/plan", False)):
            body = chat_body(budget=budget, stream=stream)
            response = await served.client.post(path, json=body)
            problem(response, 422, "invalid_field", param)
