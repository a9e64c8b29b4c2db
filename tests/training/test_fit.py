"""A router learns what its preferences say, and padding changes no score."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from allrounder.router.network import MetaRouter, RouterConfig
from allrounder.training.actions import draw_actions
from allrounder.training.bank import ImageBank
from allrounder.training.collect import PreferenceSample
from allrounder.training.distillation import distillation_loss
from allrounder.training.fit import Schedule, fit, router_inputs
from allrounder.training.options import RouterTrainingOptions
from allrounder.training.preferences import PreferenceLoss
from tests.tiny import NUM_VISUAL
from tests.training.conftest import WIDTH

OPTIONS = RouterTrainingOptions(model="tiny", data="demo", beta=20.0)
CANDIDATES = (2, 3)


def tiny_router(match_heads: int = 0) -> MetaRouter:
    return MetaRouter(
        RouterConfig(
            model_width=WIDTH,
            candidates=CANDIDATES,
            width=32,
            num_heads=4,
            match_heads=match_heads,
        )
    )


def bright_tokens(bank: ImageBank, image_idx: int) -> torch.Tensor:
    """The quarter of an image's tokens whose first feature is largest: V."""
    first_V = bank.visual(image_idx)[:, 0]
    return first_V >= first_V.quantile(0.75)


def planted_samples(bank: ImageBank, count: int) -> list[PreferenceSample]:
    """Actions harm the more the fewer bright tokens they keep, and by skipping layer 3."""
    samples = []
    for idx in range(count):
        image_idx = idx % len(bank.images)
        bright_V = bright_tokens(bank, image_idx)
        kept_AV = torch.zeros(5, NUM_VISUAL, dtype=torch.bool)
        runs_AN = torch.ones(5, 2, dtype=torch.bool)
        for row in range(5):
            kept_AV[row, torch.randperm(NUM_VISUAL)[: NUM_VISUAL // 4]] = True
            runs_AN[row, int(torch.randint(2, (1,)))] = False
        harm_A = 4.0 * (~runs_AN[:, 1]) - (kept_AV & bright_V).sum(1)
        samples.append(
            PreferenceSample(
                image_idx=image_idx,
                question_ids=tuple(range(10, 13 + idx % 4)),
                kept_AV=kept_AV,
                runs_AN=runs_AN,
                kl_nats=tuple(harm_A.tolist()),
                target_V=bright_V / bright_V.sum(),
            )
        )
    return samples


def schedule(epochs: int, muon: float = 0.0) -> Schedule:
    return Schedule(
        name="test",
        epochs=epochs,
        batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.0,
        seed=0,
        muon_learning_rate=muon,
    )


def assert_ranks_bright_tokens_first(network: MetaRouter, bank: ImageBank) -> None:
    """Of as many top tokens as are bright, a quarter would be so by chance."""
    samples = planted_samples(bank, len(bank.images))
    with torch.no_grad():
        tokens_BV, _ = network(*router_inputs(samples, bank))
    hits = [
        bright_tokens(bank, sample.image_idx)[tokens_V.topk(NUM_VISUAL // 4).indices].float()
        for sample, tokens_V in zip(samples, tokens_BV, strict=True)
    ]
    assert torch.cat(hits).mean() > 0.5


def test_a_planted_preference_is_learned(bank: ImageBank) -> None:
    network, samples = tiny_router(), planted_samples(bank, 96)
    first = fit(network, samples, bank, PreferenceLoss(OPTIONS), schedule(1))
    last = fit(network, samples, bank, PreferenceLoss(OPTIONS), schedule(1))
    assert last < min(first, 0.5 * math.log(2))
    assert_ranks_bright_tokens_first(network, bank)
    with torch.no_grad():
        _, layers_BN = network(*router_inputs(samples[:4], bank))
    assert bool((layers_BN[:, 1] > layers_BN[:, 0]).all())


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_attention_is_imitated(bank: ImageBank, muon: float) -> None:
    network = tiny_router()
    fit(network, planted_samples(bank, 24), bank, distillation_loss, schedule(6, muon))
    assert_ranks_bright_tokens_first(network, bank)


def test_samples_without_a_clear_pair_teach_nothing(bank: ImageBank) -> None:
    (sample,) = planted_samples(bank, 1)
    alike = PreferenceSample(**{**vars(sample), "kl_nats": (0.5,) * 5})
    network = tiny_router()
    tokens_BV, layers_BN = network(*router_inputs([alike], bank))
    assert PreferenceLoss(OPTIONS)([alike], tokens_BV, layers_BN).item() == 0


def test_a_match_tells_which_token_the_question_names() -> None:
    """Every question names one of the image's tokens by its own vector: no saliency helps."""
    torch.manual_seed(0)
    network = tiny_router(match_heads=4)
    rate = torch.optim.Adam(network.parameters(), lr=3e-3)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        visual_BVD = torch.randn(count, 12, WIDTH)
        named_B = torch.randint(12, (count,))
        words_BQD = torch.randn(count, 3, WIDTH)
        words_BQD[:, 1] = visual_BVD[torch.arange(count), named_B]
        return visual_BVD, words_BQD, named_B

    for _ in range(60):
        visual_BVD, words_BQD, named_B = draw(32)
        loss = cross_entropy(network(visual_BVD, words_BQD)[0], named_B)
        rate.zero_grad()
        loss.backward()
        rate.step()
    visual_BVD, words_BQD, named_B = draw(200)
    with torch.no_grad():
        found_B = network(visual_BVD, words_BQD)[0].argmax(-1)
    assert (found_B == named_B).float().mean() > 0.9


@pytest.mark.parametrize("match_heads", [0, 4])
def test_a_question_scores_the_same_padded_and_alone(bank: ImageBank, match_heads: int) -> None:
    network, samples = tiny_router(match_heads), planted_samples(bank, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    together = network(*router_inputs(samples, bank))
    for row, sample in enumerate(samples):
        visual_BVD, question_BQD, _ = router_inputs([sample], bank)
        for padded, alone in zip(together, network(visual_BVD, question_BQD), strict=True):
            assert_close(padded[row], alone[0], atol=1e-5, rtol=1e-5)


def test_actions_keep_and_skip_exactly_as_many_as_asked() -> None:
    attention_HV = torch.rand(4, 30).softmax(-1)
    for noise in ("logits", "zscore"):
        actions = draw_actions(
            [attention_HV],
            count=7,
            num_kept=5,
            num_candidates=6,
            num_skipped=2,
            noise=noise,
            scale=3.0,
            generator=torch.Generator().manual_seed(1),
        )
        assert actions.kept_AV.sum(1).tolist() == [5] * 7
        assert (~actions.runs_AN).sum(1).tolist() == [2] * 7
        assert len({tuple(row) for row in actions.kept_AV.tolist()}) > 1


def test_little_noise_keeps_the_top_of_the_attention() -> None:
    attention_HV = torch.rand(4, 30).softmax(-1)
    actions = draw_actions(
        [attention_HV],
        count=2,
        num_kept=5,
        num_candidates=2,
        num_skipped=0,
        noise="zscore",
        scale=1e-6,
        generator=torch.Generator().manual_seed(1),
    )
    top = attention_HV.mean(0).topk(5).indices.sort().values
    for kept_V in actions.kept_AV:
        assert kept_V.nonzero()[:, 0].tolist() == top.tolist()
