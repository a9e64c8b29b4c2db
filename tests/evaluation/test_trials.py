"""KL and answers through the served path of a tiny random model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from allrounder.core import Plan
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.offline import drive
from allrounder.evaluation.benchmark import Item
from allrounder.evaluation.grid import Setting, parse_contender, parse_grid_budget, settings_of
from allrounder.evaluation.trials import DenseAnswers, Trial, run_setting
from allrounder.measure.frozen import FrozenModel
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
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
    asked = parse_grid_budget(budget, num_visual=None)
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


def test_dense_plans_do_not_diverge(runner, items) -> None:
    reference = DenseAnswers(runner, items)
    for strategy in ("none", "random"):
        trial = run_setting(runner, items, _setting(strategy, "1"), reference=reference)
        assert trial.kl_nats == pytest.approx([0] * NUM_ITEMS, abs=1e-6)


def test_served_kl_is_that_of_the_frozen_model_under_the_same_plan(adapter, runner, items) -> None:
    setting = _setting("random", "0.5")
    trial = run_setting(runner, items, setting, reference=DenseAnswers(runner, items))
    frozen = FrozenModel(adapter)
    asked = [frozen.ask(i.image, frozen.encode(i.image), i.question) for i in items]
    plans = [_served_plan(runner, item, setting) for item in items]
    divergences = frozen.compare(list(zip(frozen.answer(asked), plans, strict=True)))
    assert trial.kl_nats == pytest.approx([each.kl_nats for each in divergences], abs=1e-5)


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
