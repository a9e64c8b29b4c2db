"""One tiny random LLaVA for all engine tests, with and without a (random) calibrated router."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from allrounder.router.network import MetaRouter, RouterConfig
from allrounder.router.weights import Calibration, LoadedRouter, Loyalty, load_router, save_router
from tests.tiny import tiny_llava_folder


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_folder(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="session")
def adapter(llava_folder: Path) -> TransformersAdapter:
    return load_adapter(str(llava_folder), device="cpu")


@pytest.fixture(scope="session")
def router(adapter: TransformersAdapter, tmp_path_factory: pytest.TempPathFactory) -> LoadedRouter:
    """Untrained, with scores that differ: its choices are arbitrary but not constant."""
    torch.manual_seed(1)
    geometry = adapter.geometry
    network = MetaRouter(
        RouterConfig(
            model_width=geometry.width,
            candidates=tuple(range(1, geometry.num_layers)),
            width=8,
            num_heads=2,
        )
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    folder = tmp_path_factory.mktemp("router")
    calibration = Calibration(
        block_influence=tuple(0.1 + 0.01 * (idx * 7 % 5) for idx in range(geometry.num_layers)),
        skip_ratios=(0.0, 0.5),
        token_ratios=(0.1, 1.0),
        kl_nats=((0.5, 0.0), (0.8, 0.3)),
        loyalty=Loyalty(
            num_samples=100,
            mean=((0.9, 1.0), (0.6, 0.8)),
            standard_error=((0.02, 0.0), (0.03, 0.02)),
        ),
    )
    save_router(
        folder,
        network,
        model=adapter.name,
        fingerprint=adapter.fingerprint,
        geometry=geometry,
        training={},
        calibration=calibration,
    )
    return load_router(folder, fingerprint=adapter.fingerprint, geometry=geometry)


@pytest.fixture
def runner(adapter: TransformersAdapter, router: LoadedRouter) -> ModelRunner:
    return ModelRunner(adapter, router)
