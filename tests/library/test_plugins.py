"""Strategies that live in somebody else's package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor

import allrounder
from allrounder import VLM, Strategy, register_strategy
from allrounder import pruning as registry
from allrounder.pruning.strategy import View

EXAMPLE = Path(allrounder.__file__).parent / "demo" / "example.png"
PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from allrounder import Strategy

@dataclass(frozen=True, kw_only=True)
class FirstRows(Strategy):
    name: ClassVar[str] = "first-rows"
    prunes_tokens: ClassVar[bool] = True
    start: int = 0

    def select(self, view, count):
        return view.arriving[self.start : self.start + count]
"""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def registry_restored() -> Iterator[None]:
    before = dict(registry.STRATEGIES)
    yield
    registry.STRATEGIES.clear()
    registry.STRATEGIES.update(before)
    registry._load_entry_points.cache_clear()
    registry._validator.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("first_rows_plugin", "broken_plugin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    registry._load_entry_points.cache_clear()
    return tmp_path


def install(site: Path, module: str, source: str, entry: str) -> None:
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[allrounder.strategies]\n{entry}\n")


def test_a_strategy_of_another_package_is_found_and_used(site: Path) -> None:
    install(site, "first_rows_plugin", PLUGIN, "first-rows = first_rows_plugin:FirstRows")
    vlm = VLM("demo", device="cpu")
    assert "first-rows" in [each.name for each in vlm.capabilities.strategies]
    answer = vlm.generate(
        EXAMPLE, "What is there?", {"tokens": 10}, strategy="first-rows", options={"start": 5}
    )
    assert answer.plan.kept == tuple(range(5, 15))


def test_a_package_that_is_broken_is_logged_and_left_out(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "broken_plugin", "raise RuntimeError('broken')", "bad = broken_plugin:Bad")
    install(site, "first_rows_plugin", PLUGIN, "first-rows = first_rows_plugin:FirstRows")
    known = registry.known_strategies()
    assert {"par", "first-rows"} <= set(known)
    assert "bad = broken_plugin:Bad" in caplog.text


@dataclass(frozen=True, kw_only=True)
class Last(Strategy):
    name: ClassVar[str] = "last"
    prunes_tokens: ClassVar[bool] = True

    def select(self, view: View, count: int) -> Tensor:
        return view.arriving[-count:]


def test_a_class_may_be_registered_by_hand_and_again() -> None:
    assert register_strategy(Last) is Last
    assert register_strategy(Last) is Last
    answer = VLM("demo", device="cpu").generate(EXAMPLE, "What?", {"tokens": 3, "strategy": "last"})
    assert answer.plan.kept == (193, 194, 195)


def made(**members: Any) -> type:
    return dataclass(frozen=True, kw_only=True)(type("Made", (Strategy,), members))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (dict, "subclass of Strategy"),
        (type("Plain", (Strategy,), {"name": "plain"}), "dataclass"),
        (made(), "name"),
        (made(name="a+b"), "name"),
        (made(name="par"), "is that of Par"),
    ],
    ids=["no strategy", "no dataclass", "no name", "a plus", "taken"],
)
def test_what_is_no_strategy_is_refused(kind: type, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        register_strategy(kind)
