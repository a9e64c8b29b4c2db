"""What every test gets: a clean environment, fixed seeds, no hub, a GPU only if there is one."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Workers of one machine that each spread over all its cores slow each other down many times over.
MAX_TORCH_THREADS = 1 if IS_XDIST_WORKER else 2
# A test that wants a queue says which; an app made for something else starts none.
SERVICE_DEFAULTS = {"ALLROUNDER_EMBEDDED_REDIS": "false"}

# Read by libraries when they are first imported, so before any test module is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
if IS_XDIST_WORKER:
    # Processes that tests start, too.
    os.environ["OMP_NUM_THREADS"] = "1"

# What the tests of a folder cost; `make test-fast` leaves all of these out.
COSTS = {
    "bench": ("slow",),
    "cli": ("slow",),
    "demo": ("slow",),
    "deploy": ("system",),
    "engine": ("slow",),
    "evaluation": ("slow",),
    "families": ("slow",),
    "jobs": ("system",),
    "library": ("slow",),
    "measure": ("slow",),
    "models": ("slow",),
    "service": ("system",),
    "training": ("slow",),
    "tracing": ("system",),
    "web": ("browser",),
}

settings.register_profile("short", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=2000, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="the long form of load, chaos and fuzz tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "short")
    for name in _service_variables():
        del os.environ[name]
    os.environ.update(SERVICE_DEFAULTS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for mark in COSTS.get(item.path.relative_to(ROOT / "tests").parts[0], ()):
            item.add_marker(mark)
    needy = {item for item in items if item.get_closest_marker("gpu")}
    left_out = set() if not needy or _cuda_is_available() else needy
    if not config.getoption("--long"):
        left_out |= {item for item in items if item.get_closest_marker("long")}
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def _service_variables() -> list[str]:
    return [name for name in os.environ if name.startswith("ALLROUNDER_") or name == "REDIS_URL"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's shell, or of an earlier test, reaches a test."""
    for name in _service_variables():
        if name not in SERVICE_DEFAULTS:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        if torch.get_num_threads() > MAX_TORCH_THREADS:
            torch.set_num_threads(MAX_TORCH_THREADS)


@pytest.fixture(scope="session")
def long_form(pytestconfig: pytest.Config) -> bool:
    """Whether `make test-long` asked for the long form of load, chaos and fuzz tests."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session")
def demo_weights() -> Path:
    """The embedded model as a plain transformers folder."""
    folder = ROOT / "allrounder" / "demo" / "weights"
    assert (folder / "config.json").is_file(), f"no model in {folder}"
    return folder
