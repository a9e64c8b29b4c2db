"""Which attention is distilled: that whose top tokens alone diverge least, on enough questions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from allrounder.measure.frozen import EncodedQuestion, FrozenModel
from allrounder.measure.plans import make_plan
from allrounder.pruning.strategy import keep_best
from allrounder.training import attention_target
from allrounder.training.attention_target import AttentionTarget, best_target
from allrounder.training.bank import ImageBank
from allrounder.training.samples import ImageQuestions, load_images
from tests.training.conftest import NUM_LAYERS

NUM_TARGETS = 4 * NUM_LAYERS


def test_questions_are_spread_over_the_images(bank: ImageBank) -> None:
    made_up = ImageBank(
        bank.frozen,
        [
            ImageQuestions(load=bank.images[0].load, questions=texts)
            for texts in (("a", "b", "c"), ("d", "e"), ("f",))
        ],
    )
    expected = [made_up.ask(0, text).prompt.token_ids for text in "aefbdc"]
    assert [asked.prompt.token_ids for asked in made_up.spread()] == expected
    assert len(list(bank.spread())) == bank.num_questions


def test_the_best_target_diverges_least_of_all(bank: ImageBank, frozen: FrozenModel) -> None:
    found, kl_nats = best_target(bank)
    kl_nats_of: dict[AttentionTarget, float] = {}
    for layer_idx in range(NUM_LAYERS):
        for rows in ("last", "question"):
            for pick in ("mean", "max"):
                tried = AttentionTarget(layer_idx=layer_idx, rows=rows, pick=pick)
                kl_nats_of[tried] = _mean_kl_nats(bank, frozen, tried)
    assert kl_nats_of[found] == pytest.approx(min(kl_nats_of.values()), abs=1e-6)
    assert kl_nats == pytest.approx(kl_nats_of[found], abs=1e-6)
    assert max(kl_nats_of.values()) > 1.1 * min(kl_nats_of.values())


def _mean_kl_nats(bank: ImageBank, frozen: FrozenModel, tried: AttentionTarget) -> float:
    total = 0.0
    for asked in bank.spread():
        (answer,) = frozen.answer([asked], probed_layers=[tried.layer_idx])
        count = max(1, round(attention_target.TRIAL_KEEP_RATIO * answer.num_visual))
        plan = make_plan(
            num_layers=NUM_LAYERS,
            num_visual=answer.num_visual,
            kept=keep_best(tried.of(answer), count).tolist(),
        )
        (divergence,) = frozen.compare([(answer, plan)])
        total += divergence.kl_nats
    return total / bank.num_questions


def test_close_targets_are_told_apart_on_more_questions(
    frozen: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two targets are nearly as good; the better one has bad luck with the first questions."""
    best = AttentionTarget(layer_idx=2, rows="question", pick="mean")
    lucky = AttentionTarget(layer_idx=3, rows="question", pick="mean")
    tries: list[tuple[int, int]] = []

    def kl_nats_AC(
        _: FrozenModel, asked: Sequence[EncodedQuestion], targets: Sequence[AttentionTarget]
    ) -> torch.Tensor:
        begun = sum(count for count, _ in tries)
        tries.append((len(asked), len(targets)))
        means = {best: 0.3 if begun < 4 else 0.01, lucky: 0.2}
        return torch.tensor(
            [[means.get(each, 0.5) for each in targets] for _ in asked], dtype=torch.float64
        )

    monkeypatch.setattr(attention_target, "TRIAL_SAMPLES", 4)
    monkeypatch.setattr(attention_target, "_kl_nats_AC", kl_nats_AC)
    found, kl_nats = best_target(ImageBank(frozen, load_images("demo", num_samples=16, seed=0)))
    assert tries == [(4, NUM_TARGETS), (4, NUM_TARGETS // 4)]
    assert found == best
    assert kl_nats == pytest.approx((4 * 0.3 + 4 * 0.01) / 8)
