"""A random LLaVA of four layers, frozen, with a few procedural samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from allrounder.measure.frozen import FrozenModel
from allrounder.models.loading import load_adapter
from allrounder.training.bank import ImageBank
from allrounder.training.samples import load_images
from tests.tiny import tiny_llava_folder

NUM_LAYERS, WIDTH = 4, 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small are slower on two threads, much slower where others want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_folder(
        tmp_path_factory.mktemp("models") / "tiny", num_layers=NUM_LAYERS, seed_width=WIDTH
    )


@pytest.fixture(scope="session")
def frozen(tiny_folder: Path) -> FrozenModel:
    return FrozenModel(load_adapter(str(tiny_folder), device="cpu"), max_answer_tokens=6)


@pytest.fixture(scope="session")
def bank(frozen: FrozenModel) -> ImageBank:
    return ImageBank(frozen, load_images("demo", num_samples=10, seed=0))
