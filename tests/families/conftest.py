"""Each family's tiny model: built once, loaded once by us and once by plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from tests.families.cases import FAMILIES, FamilyCase
from tests.families.reference import Reference


@pytest.fixture(scope="session", params=FAMILIES, ids=str)
def case(request: pytest.FixtureRequest) -> FamilyCase:
    return request.param


@pytest.fixture(scope="session")
def folder(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.build(tmp_path_factory.mktemp("families") / f"tiny-{case.name}")


@pytest.fixture(scope="session")
def adapter(folder: Path) -> TransformersAdapter:
    return load_adapter(str(folder), device="cpu")


@pytest.fixture(scope="session")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture
def runner(adapter: TransformersAdapter) -> ModelRunner:
    return ModelRunner(adapter)
