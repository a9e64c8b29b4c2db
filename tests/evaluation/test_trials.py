"""Harm and answers through the served path of a tiny random model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from allrounder.core import ModelGeometry, Plan, Selection
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.offline import drive
from allrounder.evaluation.benchmark import Item
from allrounder.evaluation.grid import Setting, parse_asked, parse_contender, settings_of
from allrounder.evaluation.paper_flops import par_paper_ratio
from allrounder.evaluation.trials import DenseAnswers, Trial, run_setting
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from allrounder.training.frozen import FrozenModel
from tests.evaluation.made_up import MadeUp
from tests.tiny import chat_request, tiny_llava_folder

NUM_ITEMS = 5


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> TransformersAdapter:
    folder = tiny_llava_folder(tmp_path_factory.mktemp("models") / "tiny")
    return load_adapter(str(folder), device="cpu")


@pytest.fixture(scope="module")
def runner(adapter: TransformersAdapter) -> ModelRunner:
    return ModelRunner(adapter)


@pytest.fixture(scope="module")
def items() -> Sequence[Item]:
    return MadeUp().items(limit=NUM_ITEMS, seed=0)


def _setting(strategy: str, budget: str) -> Setting:
    asked = parse_asked(budget, num_visual=None)
    (setting,) = settings_of([parse_contender(strategy)], [asked], limit=NUM_ITEMS)
    return setting


@pytest.mark.parametrize("strategy", ["random", "fastv", "fastv:layer=1"])
def test_forced_answers_are_those_of_greedy_decoding(runner, items, strategy: str) -> None:
    setting = _setting(strategy, "0.6")
    plain = run_setting(runner, items, setting)
    forced = run_setting(runner, items, setting, reference=DenseAnswers(runner, items))
    assert forced.answers == plain.answers
    assert forced.costs == plain.costs
    assert plain.kl_nats is None
    assert forced.kl_nats is not None
    assert min(forced.kl_nats) > 0


def test_dense_plans_do_no_harm(runner, items) -> None:
    reference = DenseAnswers(runner, items)
    for strategy in ("none", "random"):
        trial = run_setting(runner, items, _setting(strategy, "1"), reference=reference)
        assert trial.kl_nats == pytest.approx([0] * NUM_ITEMS, abs=1e-6)


def test_harm_is_what_the_trainers_measure_says_of_the_same_plan(adapter, runner, items) -> None:
    setting = _setting("random", "0.5")
    trial = run_setting(runner, items, setting, reference=DenseAnswers(runner, items))
    frozen = FrozenModel(adapter)
    asked = [frozen.ask(i.image, frozen.encode(i.image), i.question) for i in items]
    plans = [_served_plan(runner, item, setting) for item in items]
    harms = frozen.compare(list(zip(frozen.answer(asked), plans, strict=True)))
    assert trial.kl_nats == pytest.approx([harm.kl_nats for harm in harms], abs=1e-5)


def _served_plan(runner: ModelRunner, item: Item, setting: Setting) -> Plan:
    request = chat_request(images=(item.image,), question=item.question, budget=setting.request())
    return drive(runner, [request]).results[0].plan


def test_references_that_do_not_fit_are_made_again(runner, items) -> None:
    setting = _setting("random", "0.5")
    kept, forgotten = (
        run_setting(
            runner, items, setting, reference=DenseAnswers(runner, items, max_bytes=max_bytes)
        )
        for max_bytes in (1 << 30, 0)
    )
    assert kept == forgotten


def test_a_trial_survives_json(runner, items) -> None:
    trial = run_setting(runner, items, _setting("random", "0.5"))
    assert Trial.of_json(trial.as_json()) == trial


def test_par_paper_accounting_gives_the_papers_own_shares() -> None:
    geometry = ModelGeometry(
        num_layers=32,
        width=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_width=11008,
        vocab_size=32000,
        max_positions=4096,
    )
    expected = {(576, 28): 0.875, (144, 32): 0.586, (144, 28): 0.514, (128, 24): 0.432}
    for (tokens, layers), share in expected.items():
        plan = _plan(tokens, layers)
        assert par_paper_ratio(geometry, plan) == pytest.approx(share, abs=0.001)


def _plan(tokens: int, layers: int) -> Plan:
    selections = (Selection(layer_idx=1, count=tokens),) if tokens < 576 else ()
    runs = tuple(idx < layers for idx in range(32))
    return Plan(strategy="x", num_visual=576, runs=runs, selections=selections)
