"""The tool behind the README's explanations finds what was put into made-up cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from allrounder.demo.held_out import draw_exams
from allrounder.evaluation.benchmarks.demo import DemoBenchmark, DemoItem
from allrounder.pruning import STRATEGIES
from research.findings import ClassToken, FirstCut, app

LIMIT, SEED = 60, 3


def items() -> list[DemoItem]:
    return list(DemoBenchmark().items(limit=LIMIT, seed=SEED))  # type: ignore[arg-type]


def keep(path: Path, strategy: str, answer: Callable[[DemoItem], str] | None, **key) -> Path:
    made = {"answers": [answer(item) for item in items()]} if answer else None
    whole = {"seed": SEED, "limit": LIMIT, "options": {}, "items": "these", "strategy": strategy}
    path.write_text(json.dumps({"key": whole | key, "body": {"trial": made}}))
    return path


def right(item: DemoItem) -> str:
    return item.source.answers[0]


def one_more(item: DemoItem) -> str:
    accepted = [each for each in item.source.answers if each.isdigit()]
    return str(int(accepted[0]) + 1) if item.type == "count" else right(item)


def lines(*words: str) -> list[str]:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_counts_are_compared_with_the_dense_ones_at_one_budget(tmp_path: Path) -> None:
    keep(tmp_path / "trial-none.json", "none", right, budget=1)
    keep(tmp_path / "trial-a.json", "a", one_more, budget=0.35)
    keep(tmp_path / "trial-b.json", "b", right, budget=0.35)
    keep(tmp_path / "trial-c.json", "c", right, budget=0.25)
    keep(tmp_path / "trial-d.json", "d", None, budget=0.35)
    keep(tmp_path / "trial-e.json", "e", right, budget=0.35, seed=SEED + 1)
    count = sum(item.type == "count" for item in items())
    assert count
    assert lines("counts", str(tmp_path), "0.35") == [
        f"a: +1.00 ± 0.00 (n = {count})",
        f"b: +0.00 ± 0.00 (n = {count})",
    ]


def test_a_lead_is_told_by_the_number_of_shapes(tmp_path: Path) -> None:
    exams = draw_exams(LIMIT, seed=SEED)
    full = [len(exams[item.cluster].scene.objects) >= 9 for item in items()]
    assert 0 < sum(full) < LIMIT

    def blind(item: DemoItem) -> str:
        return "" if len(exams[item.cluster].scene.objects) >= 9 else right(item)

    mine = keep(tmp_path / "mine.json", "par", right)
    theirs = keep(tmp_path / "theirs.json", "par", blind)
    found = lines("shapes", str(mine), str(theirs))
    assert found[2] == f"from 9 to 999: +100.00 ± 0.00 (n = {sum(full)})"
    assert found[0].startswith("from 0 to 4: +0.00")
    assert found[3].startswith(f"from 0 to 999: +{100 * sum(full) / LIMIT:.2f}")


def test_autoprune_is_taken_apart_on_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (FirstCut, ClassToken):
        monkeypatch.setitem(STRATEGIES, kind.name, kind)
    lines("autoprune", "--limit", "5", "--output", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    kept = {(cell["strategy"], cell["budget_label"]): cell for cell in report["cells"]}
    for budget, count in (("tokens=11.2%", 22), ("tokens=28%", 55)):
        whole, first, ranked = (
            kept[name, budget] for name in ("autoprune", FirstCut.name, ClassToken.name)
        )
        assert first["tokens_ratio"] == pytest.approx(count / 196)
        assert ranked["kv_bytes"] == whole["kv_bytes"], "the schedule is AutoPrune's"
        assert ranked["kl_nats"] != whole["kl_nats"], "the ranking is not"
