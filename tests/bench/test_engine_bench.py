"""The engine's benchmark on a tiny shape: which rows there are, and what must hold among them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from allrounder.bench.sides import EngineSide, LibrarySide, encode_all
from allrounder.bench.workload import (
    DENSE,
    Workload,
    counts_within,
    make_workload,
    mixed_counts,
    scaled,
)
from allrounder.core import Plan, PromptShape, Selection
from allrounder.core.budget import Counts
from allrounder.cost import cost_of
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from allrounder_service.cli.main import cli
from tests.cases import LLAVA_1_5_7B

PLANS = ("16x7", "7x6")
NAMES = [
    "encode/1",
    "prefill/dense/1",
    "decode-step/dense/1",
    "decode-step/dense/8",
    *(
        name
        for batch in (1, 8)
        for name in (
            f"generate/dense/{batch}",
            *(
                f"{kind}/{p}/{batch}"
                for p in PLANS
                for kind in ("generate", "over-dense", "of-bound")
            ),
        )
    ),
    *(f"prefill/{share}" for share in (0.5, 0.35, 0.25, 0.2)),
    "mixed-plans/8",
    "mixed-plans/8/same-work",
    *(f"{kind}/{plan}" for plan in PLANS for kind in ("kv-bytes", "kv-requests")),
    "router/64/flops",
    "router/64/time",
]
LLAVA_PROMPT = PromptShape(num_text=64, visual_per_image=(576,), num_question=56)


@pytest.fixture(scope="module")
def tiny() -> TransformersAdapter:
    return load_adapter("random:tiny", device="cpu")


@pytest.fixture(scope="module")
def workload(tiny: TransformersAdapter) -> Workload:
    return make_workload(tiny)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    arguments = "--model random:tiny --device cpu --rounds 1 --threads 1 --router-width 64 --json"
    result = CliRunner().invoke(cli, ["bench", "engine", *arguments.split()])
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.fixture(scope="module")
def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["rows"]}


@pytest.mark.timeout(60)
def test_every_row_is_there_with_a_positive_value(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == NAMES
    assert [name for name, row in rows.items() if not row["value"] > 0] == []
    for row in rows.values():
        if row["ratio"] is not None:
            assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])


@pytest.mark.timeout(60)
def test_the_report_says_what_it_ran_on(found: dict[str, Any]) -> None:
    environment = found["environment"]
    assert environment["model"] == "random-tiny"
    assert environment["workload"].startswith("64 visual + 24 text rows, 16 new tokens")
    assert {"cpu", "cores", "threads", "versions", "commit", "command"} <= set(environment)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("plan", "tokens", "layers"), [("16x7", 16, 7), ("7x6", 7, 6)])
def test_memory_is_the_arithmetic_of_rows_and_layers(
    rows: dict[str, dict[str, Any]], plan: str, tokens: int, layers: int
) -> None:
    text, added = 24, 15
    expected = (text + tokens + added) * layers / ((text + 64 + added) * 8)
    assert rows[f"kv-bytes/{plan}"]["ratio"] == pytest.approx(expected)
    assert rows[f"kv-requests/{plan}"]["ratio"] > 1


@pytest.mark.timeout(60)
def test_a_prefill_row_is_compared_with_the_reduction_of_its_flops(
    rows: dict[str, dict[str, Any]],
) -> None:
    for share in (0.5, 0.35, 0.25, 0.2):
        row = rows[f"prefill/{share}"]
        assert row["baseline"] == pytest.approx(1 / share, rel=0.1)
        assert row["baseline"] >= 1 / share


def test_both_sides_generate_the_same_tokens(tiny: TransformersAdapter, workload: Workload) -> None:
    features = encode_all(tiny, workload.images)
    ours = EngineSide(tiny, features).answer(workload.requests([DENSE], image_of=[0], max_tokens=6))
    stream = tiny.text_stream()
    (theirs,) = LibrarySide(tiny, features, workload).token_ids(1, 6)
    assert len(theirs) == 6
    assert ours.results[0].answer == "".join(stream.push(each) for each in theirs).lstrip()


def test_counts_keep_their_shares_in_another_geometry() -> None:
    assert scaled(144, 28, num_visual=576, num_layers=32) == Counts(tokens=144, layers=28)
    assert scaled(144, 28, num_visual=64, num_layers=8) == Counts(tokens=16, layers=7)


def test_mixed_plans_are_eight_different_ones() -> None:
    assert len(set(mixed_counts(num_visual=576, num_layers=32))) == 8
    assert len(set(mixed_counts(num_visual=64, num_layers=8))) == 8


@pytest.mark.parametrize("share", [0.5, 0.35, 0.25, 0.2])
def test_counts_within_a_share_are_the_most_tokens_that_fit(share: float) -> None:
    counts = counts_within(LLAVA_1_5_7B, LLAVA_PROMPT, share)
    assert counts is not None
    assert counts.layers == 28

    def spent(tokens: int) -> float:
        plan = Plan(
            strategy="random",
            num_visual=576,
            runs=(True,) * 28 + (False,) * 4,
            selections=(Selection(layer_idx=0, count=tokens),),
        )
        return cost_of(LLAVA_1_5_7B, LLAVA_PROMPT, plan).prefill_ratio

    assert counts.tokens is not None
    assert spent(counts.tokens) <= share < spent(counts.tokens + 1)


def test_a_share_that_the_text_alone_exceeds_has_no_counts() -> None:
    shape = PromptShape(num_text=500, visual_per_image=(576,), num_question=490)
    assert counts_within(LLAVA_1_5_7B, shape, 0.1) is None
