"""The report of a few made-up trials, word for word; its tables and its images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from allrounder.evaluation.cells import cells_of, infeasible_of
from allrounder.evaluation.defaults import Search
from allrounder.evaluation.grid import Contender, Setting, parse_contender, parse_grid_budget
from allrounder.evaluation.report import Report, report_text, write_report
from allrounder.evaluation.run import Finished, SearchResult
from allrounder.evaluation.trials import Trial
from tests.evaluation.made_up import ENVIRONMENT, MadeUp

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation_report.md"
NUM_ITEMS = 8
LEVELS = {"none": "nothing", "fastv:best": "token", "par@a": "joint", "par@b": "joint"}


def _finished(
    strategy: str, budget: str, wrong: set[int], share: float, *, num_items: int = NUM_ITEMS
) -> Finished:
    name, _, router = strategy.partition("@")
    contender = replace(parse_contender(name), label=strategy, router=router or None, search=None)
    asked = parse_grid_budget(budget, num_visual=196)
    answers = tuple("?" if idx in wrong else f"word {idx}" for idx in range(num_items))
    return Finished(
        setting=Setting(contender=contender, budget=asked, num_items=num_items),
        trial=Trial(
            answers=answers,
            kl_nats=tuple(0.25 if idx in wrong else 0.0 for idx in range(num_items)),
            costs={
                "flops_ratio": share,
                "total_flops_ratio": share,
                "par_paper_ratio": (1 + share) / 2,
                "tokens_ratio": share,
                "layers_ratio": 1.0,
                "kv_bytes": 4096 * share,
                "kv_ratio": share,
            },
        ),
        seconds=(0.1 * share, 0.12 * share, 0.11 * share),
    )


@pytest.fixture(scope="module")
def report() -> Report:
    searched = replace(
        _finished("fastv:best", "0.5", {0, 1, 2}, 0.49),
        choice=SearchResult(
            knob="layer",
            value=3,
            tried={"2": 0.25, "3": 0.5, "8": "too small"},
            num_items=4,
            seed=1_000_003,
        ),
    )
    refused = Finished(
        setting=Setting(
            contender=Contender(
                label="fastv:best", strategy="fastv", search=Search(knob="layer", values=(2,))
            ),
            budget=parse_grid_budget("tokens=6%", num_visual=196),
            num_items=NUM_ITEMS,
        ),
        reason="layer=2: too small",
    )
    finished = [
        _finished("none", "1", set(), 1.0, num_items=10),
        searched,
        refused,
        *(
            _finished(f"par@{router}", budget, wrong, share)
            for router, wrong in (("a", {0}), ("b", {0, 2}))
            for budget, share in (("0.5", 0.48), ("tokens=6%", 0.1))
        ),
    ]
    facts = {
        label: {
            "level": level,
            "base": label.partition("@")[0],
            "router": f"made-up@{label[-1]}" if "@" in label else None,
        }
        for label, level in LEVELS.items()
    }
    items = MadeUp().items(limit=10, seed=0)
    return Report(
        run={
            "benchmark": "made-up",
            "seed": 0,
            "model": "fake",
            "fingerprint": "0" * 16,
            "routers": ["made-up@a", "made-up@b"],
        },
        environment=ENVIRONMENT,
        cells=cells_of(MadeUp(), items, finished, facts=facts),
        infeasible=infeasible_of(MadeUp(), finished),
    )


def test_the_report_is_the_golden_one(report: Report) -> None:
    assert report_text(report, ["accuracy-flops.svg"]) + "\n" == GOLDEN.read_text()


def test_pairs_are_counted_by_hand(report: Report) -> None:
    # par@b is right in 2 of 8 and par@a in 3; they differ in item 2, of the second of 4 images.
    cell = next(cell for cell in report.cells if cell["strategy"] == "par@b")
    assert cell["accuracy"] == 2 / 8
    assert cell["paired"]["par@a"]["difference"] == pytest.approx(-1 / 8)
    residuals = [1 / 4, -3 / 4, 1 / 4, 1 / 4]
    expected = sum(each**2 for each in residuals) ** 0.5 / 8
    assert cell["paired"]["par@a"]["stderr"] == pytest.approx(expected)
    assert cell["dense"]["n"] == 8


def test_the_files_are_the_same_bytes_each_time(report: Report, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(report, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["accuracy-flops.svg", "accuracy-latency.svg", "report.json", "report.md"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    found = json.loads((tmp_path / "a" / "report.json").read_text())
    assert found["cells"] == report.cells
    assert found["environment"]["command"] == "allrounder evaluate"


def test_the_images_are_small_and_name_their_axes(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    image = (tmp_path / "accuracy-flops.svg").read_text()
    assert len(image) < 60_000
    for words in ("accuracy, %", "prefill FLOPs", "par@a", "dense"):
        assert words in image
