"""Which layers are skipped and which tokens are kept: the points of the redundancy curves.

Shapes: V visual tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from allrounder.core import Plan
from allrounder.measure.frozen import DenseAnswer
from allrounder.measure.plans import make_plan
from allrounder.pruning.strategy import keep_best
from allrounder.training.actions import draw_actions
from allrounder.training.attention_target import AttentionTarget

LEAST_INFLUENCE = "least influence"
LAST_LAYERS = "last"
RANDOM = "random"
ATTENTION = "attention"
PERTURBED = "perturbed attention"
BEST_PERTURBED = "perturbed attention, best by KL"
BEST_TARGET = "attention of the best layer"
# FastV (K = 2) reads the second layer; here its ranking is applied before the first one.
FASTV_TARGET = AttentionTarget(layer_idx=1, rows="last")
# Beside the numbers of the random draws: the noise has a stream of its own.
_NOISE = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """A point of a curve: so many layers skipped, or this share of the visual tokens kept."""

    curve: Literal["layers", "tokens"]
    rule: str
    amount: float


@dataclass(frozen=True, kw_only=True)
class RedundancyOptions:
    """What is varied.

    Attributes:
        random_draws: per sample and point, of layers and of tokens; their mean counts as one.
        noisy_draws: perturbed rankings per sample, PAR's 5.
        noise_scale: standard deviation of the noise on attention logits; PAR's N(0, 10).
        mixed_share: share of tokens kept where the similarity of layers is looked at once more.
    """

    shares: tuple[float, ...] = (0.5, 0.25, 0.12, 0.06)
    random_draws: int = 2
    noisy_draws: int = 5
    noise_scale: float = 10**0.5
    mixed_share: float = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """What was found on other questions than those that are measured.

    Attributes:
        influence: 1 - cosine(input, output) of every layer (ShortGPT).
        target: the attention whose top tokens alone diverge least.
        candidates: layers that may be skipped, ascending.
    """

    influence: tuple[float, ...]
    target: AttentionTarget
    candidates: tuple[int, ...]

    @property
    def max_skipped(self) -> int:
        return min(len(self.influence) // 2, len(self.candidates))

    @property
    def by_influence(self) -> list[int]:
        """Candidates, the least influential first."""
        return sorted(self.candidates, key=lambda idx: (self.influence[idx], idx))


def layer_plans(
    answer: DenseAnswer, choosing: Choosing, options: RedundancyOptions, *, sample: int
) -> dict[CurvePoint, list[Plan]]:
    """Plans for one layer skipped up to half of all; random ones are drawn for each sample."""
    drawn = []
    for draw in range(options.random_draws):
        order = torch.randperm(
            len(choosing.candidates), generator=_generator(options, sample, draw)
        )
        drawn.append([choosing.candidates[idx] for idx in order.tolist()])
    orders = {
        LEAST_INFLUENCE: [choosing.by_influence],
        LAST_LAYERS: [list(reversed(choosing.candidates))],
        RANDOM: drawn,
    }
    return {
        CurvePoint(curve="layers", rule=rule, amount=count): [
            make_plan(
                num_layers=len(choosing.influence),
                num_visual=answer.num_visual,
                skipped=order[:count],
            )
            for order in found
        ]
        for rule, found in orders.items()
        for count in range(1, choosing.max_skipped + 1)
    }


def token_plans(
    answer: DenseAnswer, choosing: Choosing, options: RedundancyOptions, *, sample: int
) -> dict[CurvePoint, list[Plan]]:
    """Plans for every share and rule; smaller shares of one ranking lie within larger ones."""
    plans = {}
    for share in options.shares:
        count = max(1, round(share * answer.num_visual))
        kept = {
            RANDOM: [
                keep_best(
                    torch.rand(answer.num_visual, generator=_generator(options, sample, draw)),
                    count,
                )
                for draw in range(options.random_draws)
            ],
            ATTENTION: [keep_best(FASTV_TARGET.of(answer), count)],
            PERTURBED: perturbed_rows(answer, options, count=count, sample=sample),
            BEST_TARGET: [keep_best(choosing.target.of(answer), count)],
        }
        for rule, choices in kept.items():
            point = CurvePoint(curve="tokens", rule=rule, amount=share)
            plans[point] = [keeping(answer, rows_K, choosing) for rows_K in choices]
    return plans


def perturbed_rows(
    answer: DenseAnswer, options: RedundancyOptions, *, count: int, sample: int
) -> list[Tensor]:
    """The kept tokens of each noisy ranking; the same noise whatever the count."""
    actions = draw_actions(
        [FASTV_TARGET.by_head(answer)],
        count=options.noisy_draws,
        num_kept=count,
        num_candidates=0,
        num_skipped=0,
        noise="logits",
        scale=options.noise_scale,
        generator=_generator(options, sample, _NOISE),
    )
    return [kept_V.nonzero()[:, 0] for kept_V in actions.kept_AV]


def keeping(answer: DenseAnswer, rows_K: Tensor, choosing: Choosing) -> Plan:
    return make_plan(
        num_layers=len(choosing.influence), num_visual=answer.num_visual, kept=rows_K.tolist()
    )


def mixed_plans(
    answer: DenseAnswer, choosing: Choosing, options: RedundancyOptions, *, sample: int
) -> dict[str, Plan]:
    """All tokens, and a share of them by attention and by each of the noisy rankings."""
    count = max(1, round(options.mixed_share * answer.num_visual))
    noisy: Sequence[Tensor] = perturbed_rows(answer, options, count=count, sample=sample)
    share = f"{100 * options.mixed_share:g} %"
    chosen = {
        f"{share} by attention": keep_best(FASTV_TARGET.of(answer), count),
        **{f"{share} perturbed, draw {idx}": rows_K for idx, rows_K in enumerate(noisy, 1)},
    }
    every = torch.arange(answer.num_visual)
    return {
        name: keeping(answer, rows_K, choosing)
        for name, rows_K in {"all tokens": every, **chosen}.items()
    }


def _generator(options: RedundancyOptions, sample: int, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed << 40 | sample << 8 | draw)
