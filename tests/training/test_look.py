"""Which of the frozen model's looks is imitated: the one whose tokens harm least, on enough."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from allrounder.pruning.strategy import keep_best
from allrounder.training import look
from allrounder.training.bank import PictureBank
from allrounder.training.frozen import Asked, FrozenModel, make_plan
from allrounder.training.look import Look, best_look
from allrounder.training.samples import Picture, load_pictures
from tests.training.conftest import NUM_LAYERS

NUM_LOOKS = 4 * NUM_LAYERS


def test_questions_are_spread_over_the_pictures(bank: PictureBank) -> None:
    made_up = PictureBank(
        bank.frozen,
        [
            Picture(load=bank.pictures[0].load, questions=texts)
            for texts in (("a", "b", "c"), ("d", "e"), ("f",))
        ],
    )
    expected = [made_up.ask(0, text).prompt.token_ids for text in "aefbdc"]
    assert [asked.prompt.token_ids for asked in made_up.spread()] == expected
    assert len(list(bank.spread())) == bank.num_questions


def test_the_best_look_harms_least_of_all(bank: PictureBank, frozen: FrozenModel) -> None:
    found, kl_nats = best_look(bank)
    harms: dict[Look, float] = {}
    for layer_idx in range(NUM_LAYERS):
        for rows in ("last", "question"):
            for pick in ("mean", "max"):
                tried = Look(layer_idx=layer_idx, rows=rows, pick=pick)
                harms[tried] = _mean_harm(bank, frozen, tried)
    assert harms[found] == pytest.approx(min(harms.values()), abs=1e-6)
    assert kl_nats == pytest.approx(harms[found], abs=1e-6)
    assert max(harms.values()) > 1.1 * min(harms.values())


def _mean_harm(bank: PictureBank, frozen: FrozenModel, tried: Look) -> float:
    total = 0.0
    for asked in bank.spread():
        (answer,) = frozen.answer([asked], probed_layers=[tried.layer_idx])
        count = max(1, round(look.TRIAL_KEEP_RATIO * answer.num_visual))
        plan = make_plan(
            num_layers=NUM_LAYERS,
            num_visual=answer.num_visual,
            kept=keep_best(tried.of(answer), count).tolist(),
        )
        (harm,) = frozen.compare([(answer, plan)])
        total += harm.kl_nats
    return total / bank.num_questions


def test_close_looks_are_told_apart_on_more_questions(
    frozen: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks are nearly as good; the better one has bad luck with the first questions."""
    best = Look(layer_idx=2, rows="question", pick="mean")
    lucky = Look(layer_idx=3, rows="question", pick="mean")
    tries: list[tuple[int, int]] = []

    def harms_AL(_: FrozenModel, asked: Sequence[Asked], looks: Sequence[Look]) -> torch.Tensor:
        begun = sum(count for count, _ in tries)
        tries.append((len(asked), len(looks)))
        means = {best: 0.3 if begun < 4 else 0.01, lucky: 0.2}
        return torch.tensor(
            [[means.get(each, 0.5) for each in looks] for _ in asked], dtype=torch.float64
        )

    monkeypatch.setattr(look, "TRIAL_SAMPLES", 4)
    monkeypatch.setattr(look, "_harms_AL", harms_AL)
    found, kl_nats = best_look(PictureBank(frozen, load_pictures("demo", num_samples=16, seed=0)))
    assert tries == [(4, NUM_LOOKS), (4, NUM_LOOKS // 4)]
    assert found == best
    assert kl_nats == pytest.approx((4 * 0.3 + 4 * 0.01) / 8)
