"""Curves that begin at the dense model, repeat themselves, and price what they say they price."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from allrounder.evaluation.benchmark import Item
from allrounder.measure.frozen import DenseAnswer, FrozenModel
from allrounder.models.loading import load_adapter
from allrounder.training.attention_target import AttentionTarget
from research.redundancy.__main__ import redundancy
from research.redundancy.experiment import (
    PlanOutcome,
    Questions,
    Redundancy,
    choose,
    measure,
    questions_of,
    split_questions,
)
from research.redundancy.figure import plot_redundancy
from research.redundancy.plans import (
    ATTENTION,
    BEST_PERTURBED,
    LEAST_INFLUENCE,
    PERTURBED,
    RANDOM,
    Choosing,
    CurvePoint,
    RedundancyOptions,
    layer_plans,
    perturbed_rows,
    token_plans,
)
from research.redundancy.summary import DEMO_GOALS, CostGoal, summary_of, text_of
from tests.tiny import NUM_VISUAL, noise_image, tiny_llava_folder

pytestmark = pytest.mark.timeout(120)
NUM_LAYERS = 4
OPTIONS = RedundancyOptions(shares=(1.0, 0.5, 0.12), random_draws=2, noisy_draws=3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_folder(tmp_path_factory.mktemp("models") / "tiny", num_layers=NUM_LAYERS)


@pytest.fixture(scope="module")
def frozen(folder: Path) -> FrozenModel:
    return FrozenModel(load_adapter(str(folder), device="cpu"), max_answer_tokens=4)


@pytest.fixture(scope="module")
def questions() -> Questions:
    items = [
        Item(
            image=noise_image(idx // 2),
            question=f"What is {idx}?",
            type="any",
            cluster=idx // 2,
            grade=partial(_grade, idx),
        )
        for idx in range(10)
    ]
    return questions_of(items)


def _grade(idx: int, answer: str) -> float:
    """Anything that depends on the answer and on the question."""
    return (len(answer) + idx) % 5 / 4


@pytest.fixture(scope="module")
def parts(questions: Questions) -> tuple[Questions, Questions]:
    return split_questions(questions, num_first=3, num_second=5)


@pytest.fixture(scope="module")
def choosing(frozen: FrozenModel, parts: tuple[Questions, Questions]) -> Choosing:
    return choose(frozen, parts[0])


@pytest.fixture(scope="module")
def found(
    frozen: FrozenModel, parts: tuple[Questions, Questions], choosing: Choosing
) -> Redundancy:
    return measure(frozen, parts[1], choosing, OPTIONS)


@pytest.fixture(scope="module")
def summary(found: Redundancy) -> dict[str, Any]:
    return summary_of(found)


@pytest.fixture(scope="module")
def answer(frozen: FrozenModel) -> DenseAnswer:
    image = noise_image(7)
    asked = frozen.ask(image, frozen.encode(image), "What is it?")
    return frozen.answer([asked], probed_layers=range(NUM_LAYERS))[0]


def test_no_image_is_both_chosen_on_and_measured(parts: tuple[Questions, Questions]) -> None:
    first, second = parts
    assert [image.questions for image in first.images] == [
        ("What is 0?", "What is 1?"),
        ("What is 2?", "What is 3?"),
    ]
    texts = [question for image in second.images for question in image.questions]
    assert texts == [f"What is {idx}?" for idx in range(4, 9)]
    assert first.grades is not None
    assert second.grades is not None
    assert [grade("") for grade in first.grades] == [_grade(idx, "") for idx in range(4)]
    assert [grade("") for grade in second.grades] == [_grade(idx, "") for idx in range(4, 9)]


def test_the_least_influential_layers_go_first_and_the_first_layer_never(
    answer: DenseAnswer,
) -> None:
    target = AttentionTarget(layer_idx=0, rows="last")
    choosing = Choosing(influence=(0.0, 0.3, 0.1, 0.2), target=target, candidates=(1, 2, 3))
    plans = layer_plans(answer, choosing, OPTIONS, sample=0)
    skipped = {
        (point.rule, point.amount): [plan.skipped_layers for plan in choices]
        for point, choices in plans.items()
    }
    assert skipped[LEAST_INFLUENCE, 1] == [(2,)]
    assert skipped[LEAST_INFLUENCE, 2] == [(2, 3)]
    assert skipped["last", 2] == [(2, 3)]
    assert max(amount for _, amount in skipped) == NUM_LAYERS // 2
    for (rule, amount), choices in skipped.items():
        assert len(choices) == (2 if rule == RANDOM else 1)
        assert all(len(layers) == amount and 0 not in layers for layers in choices)


def test_smaller_shares_of_a_ranking_lie_within_larger_ones(
    answer: DenseAnswer, choosing: Choosing
) -> None:
    plans = token_plans(answer, choosing, OPTIONS, sample=3)
    kept = {
        (point.rule, point.amount): [set(plan.kept or ()) for plan in choices]
        for point, choices in plans.items()
    }
    for rule in {rule for rule, _ in kept}:
        for few, many, every in zip(*(kept[rule, s] for s in (0.12, 0.5, 1.0)), strict=True):
            assert few < many < every
            assert [len(few), len(many), len(every)] == [8, 32, NUM_VISUAL]
    last_row_V = answer.attention[1][:, -1].mean(0)
    assert kept[ATTENTION, 0.12] == [set(last_row_V.topk(8).indices.tolist())]


def test_without_noise_a_perturbed_ranking_is_the_attention(
    answer: DenseAnswer, choosing: Choosing
) -> None:
    quiet = RedundancyOptions(shares=(0.12,), noise_scale=1e-9)
    (kept,) = token_plans(answer, choosing, quiet, sample=0)[
        CurvePoint(curve="tokens", rule=ATTENTION, amount=0.12)
    ]
    for rows_K in perturbed_rows(answer, quiet, count=8, sample=0):
        assert tuple(rows_K.tolist()) == kept.kept


def test_all_tokens_are_the_dense_model(found: Redundancy) -> None:
    whole = [outcomes for point, outcomes in found.outcomes.items() if point.amount == 1.0]
    tokens = [
        outcomes
        for point, outcomes in found.outcomes.items()
        if point.curve == "tokens" and point.amount == 1.0
    ]
    assert len(tokens) == 5
    assert len(whole) > len(tokens)
    for outcomes in tokens:
        for outcome, dense in zip(outcomes, found.dense, strict=True):
            assert outcome.kl_nats == pytest.approx(0, abs=1e-5)
            assert outcome.agreement == 1
            assert outcome.grade == dense.grade


def test_every_curve_begins_at_the_dense_model_and_has_all_questions(
    summary: dict[str, Any],
) -> None:
    for curve, start in (("layers", 0), ("tokens", 1)):
        rules = {cell["rule"] for cell in summary[curve]}
        begin = [c for c in summary[curve] if c["amount"] == start and c["cost_points"] == 0]
        assert {cell["rule"] for cell in begin} == rules
        assert {cell["n"] for cell in summary[curve]} == {5}


def test_skipping_layers_changes_a_random_model(found: Redundancy) -> None:
    worst = found.outcomes[CurvePoint(curve="layers", rule=LEAST_INFLUENCE, amount=2)]
    assert min(outcome.kl_nats for outcome in worst) > 1e-3


def test_the_best_draw_is_never_worse_than_the_mean_draw(found: Redundancy) -> None:
    for share in OPTIONS.shares:
        best, mean = (
            found.outcomes[CurvePoint(curve="tokens", rule=rule, amount=share)]
            for rule in (BEST_PERTURBED, PERTURBED)
        )
        for one, other in zip(best, mean, strict=True):
            assert one.kl_nats <= other.kl_nats + 1e-9


def test_the_same_seed_measures_the_same(
    frozen: FrozenModel, parts: tuple[Questions, Questions], choosing: Choosing, found: Redundancy
) -> None:
    again = measure(frozen, parts[1], choosing, OPTIONS)
    assert again.outcomes == found.outcomes
    other = RedundancyOptions(shares=(0.5,), random_draws=1, noisy_draws=1, seed=1)
    changed = measure(frozen, parts[1], choosing, other).outcomes
    point = CurvePoint(curve="tokens", rule=RANDOM, amount=0.5)
    assert changed[point] != found.outcomes[point]


def test_questions_without_answers_give_agreement_alone(
    frozen: FrozenModel, parts: tuple[Questions, Questions], choosing: Choosing, found: Redundancy
) -> None:
    unlabelled = Questions(images=parts[1].images)
    bare = measure(frozen, unlabelled, choosing, OPTIONS)
    for point, outcomes in bare.outcomes.items():
        assert [outcome.grade for outcome in outcomes] == [None] * 5
        for mine, theirs in zip(outcomes, found.outcomes[point], strict=True):
            assert mine.kl_nats == pytest.approx(theirs.kl_nats)
    summary = summary_of(bare, DEMO_GOALS)
    assert summary["layers"][0]["accuracy"] is None
    assert summary["verdicts"] == []
    assert "MISSED" not in text_of(summary)


def test_similarity_is_told_for_every_layer_and_every_choice_of_tokens(
    summary: dict[str, Any], choosing: Choosing
) -> None:
    names = list(dict.fromkeys(cell["tokens"] for cell in summary["similarity"]))
    assert names == ["all tokens", "50 % by attention"] + [
        f"50 % perturbed, draw {idx}" for idx in (1, 2, 3)
    ]
    assert [cell["layer"] for cell in summary["similarity"]] == list(range(NUM_LAYERS)) * 5
    assert all(-1 <= cell["all_rows"] <= 1 for cell in summary["similarity"])
    assert len(choosing.influence) == NUM_LAYERS


def _made_up(costs: dict[CurvePoint, float]) -> Redundancy:
    """Twenty questions that the dense model answers; each point loses a share of them."""
    right = PlanOutcome(kl_nats=0.0, agreement=1.0, grade=1.0)
    wrong = PlanOutcome(kl_nats=1.0, agreement=0.0, grade=0.0)
    target = AttentionTarget(layer_idx=0, rows="last")
    found = Redundancy(
        choosing=Choosing(influence=(0.1,) * 16, target=target, candidates=tuple(range(1, 16))),
        options=OPTIONS,
        clusters=list(range(20)),
        dense=[right] * 20,
        similarity={"all tokens": [(torch.ones(16), torch.ones(16))] * 20},
    )
    for point, cost in costs.items():
        num_lost = round(20 * cost)
        found.outcomes[point].extend([wrong] * num_lost + [right] * (20 - num_lost))
    return found


@pytest.mark.parametrize(
    ("costs", "met"),
    [
        ((0.0, 0.05, 0.05, 0.2), (True, True, True, True)),
        ((0.05, 0.0, 0.1, 0.15), (False, False, False, False)),
    ],
)
def test_verdicts_hold_costs_against_the_goals(
    costs: tuple[float, ...], met: tuple[bool, ...]
) -> None:
    found = _made_up({goal.point: cost for goal, cost in zip(DEMO_GOALS, costs, strict=True)})
    summary = summary_of(found, DEMO_GOALS)
    assert [verdict["met"] for verdict in summary["verdicts"]] == list(met)
    points = [verdict["cost_points"] for verdict in summary["verdicts"]]
    assert points == pytest.approx([100 * cost for cost in costs])
    lines = text_of(summary).splitlines()[-4:]
    assert [line.startswith("met: ") for line in lines] == list(met)


def test_a_cost_is_given_the_error_of_the_paired_differences() -> None:
    point = DEMO_GOALS[0].point
    (cell,) = (c for c in summary_of(_made_up({point: 0.25}))["layers"] if c["amount"] == 4)
    assert cell["accuracy"] == 0.75
    assert cell["cost_points"] == 25
    assert cell["cost_points_stderr"] == pytest.approx(100 * (0.25 * 0.75 / 20) ** 0.5)


def test_a_goal_without_its_point_gets_no_verdict() -> None:
    found = _made_up({DEMO_GOALS[0].point: 0.0})
    goals: tuple[CostGoal, ...] = DEMO_GOALS[:2]
    assert len(summary_of(found, goals)["verdicts"]) == 1


def test_the_figure_is_the_same_to_the_byte(summary: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        plot_redundancy(summary, tmp_path / name)
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn == (tmp_path / "other.png").read_bytes()


def made_command() -> typer.Typer:
    made = typer.Typer()
    made.command()(redundancy)
    return made


@pytest.mark.timeout(120)
def test_the_command_prints_one_object_and_writes_three_files(folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(folder), "--samples", "3", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(made_command(), [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["n"] == 3
    assert printed["data"] == "demo"
    assert printed["verdicts"] == []
    assert {"rule", "amount", "n", "accuracy", "accuracy_stderr", "cost_points", "agreement",
            "kl_nats", "kl_nats_stderr"} <= set(printed["layers"][0])  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "redundancy.json",
        "redundancy.md",
        "redundancy.png",
    ]
    assert json.loads((tmp_path / "out" / "redundancy.json").read_text()) == printed


@pytest.mark.parametrize("arguments", [["--benchmark", "x"], ["--samples", "0"]], ids=" ".join)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(made_command(), arguments).exit_code == 2
