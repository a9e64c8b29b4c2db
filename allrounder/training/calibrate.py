"""Measures a frozen model with its router on unlabelled samples: what a plan of each size harms.

Shapes: L layers, S samples; a grid G has one row per count of skipped layers and one column per
share of kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from allrounder.pruning.par import Par
from allrounder.pruning.strategy import Context
from allrounder.router.network import MetaRouter
from allrounder.router.weights import Calibration, Loyalty
from allrounder.training.bank import PictureBank
from allrounder.training.isotonic import isotonic_grid
from allrounder.training.planning import plan_by, view_of
from allrounder.training.similarity import block_influence

TOKEN_RATIOS = (0.01, 0.03, 0.06, 0.09, 0.12, 0.16, 0.2, 0.25, 0.31, 0.4, 0.5, 0.65, 0.8, 0.9, 1.0)
SKIP_RATIOS = tuple(sixteenths / 16 for sixteenths in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12))


def calibrate(network: MetaRouter, bank: PictureBank) -> Calibration:
    """Block influence per layer, and what the router's plans harm on a grid of sizes.

    KL and loyalty of a size are means over the bank's questions; loyalty holds for greedy answers
    of as many tokens as the bank's model may give.
    """
    frozen, candidates = bank.frozen, network.config.candidates
    context = Context(geometry=frozen.adapter.geometry, router_candidates=candidates)
    skips = skip_counts(frozen.num_layers, num_candidates=len(candidates))
    influences, harms, pictures = [], [], []
    with tqdm(total=bank.num_questions, desc="calibration", unit="sample") as bar:
        for batch in bank.batches():
            answers = frozen.answer([asked for _, asked in batch])
            trials = []
            for answer in answers:
                influences.append(block_influence(frozen, answer.asked))
                view = view_of(answer, frozen, context, seed=0, network=network)
                counts = [max(1, round(ratio * answer.num_visual)) for ratio in TOKEN_RATIOS]
                trials += [
                    (answer, plan_by(Par(), view, num_kept=count, num_skipped=skip))
                    for skip in skips
                    for count in counts
                ]
            harms += frozen.compare(trials)
            pictures += [picture_idx for picture_idx, _ in batch]
            bar.update(len(batch))
    shape = (len(pictures), len(skips), len(TOKEN_RATIOS))
    kl_SG = torch.tensor([harm.kl_nats for harm in harms], dtype=torch.float64).view(shape)
    agrees_SG = torch.tensor([harm.agrees for harm in harms], dtype=torch.float64).view(shape)
    return Calibration(
        block_influence=tuple(torch.stack(influences).mean(0).tolist()),
        skip_ratios=tuple(skip / frozen.num_layers for skip in skips),
        token_ratios=TOKEN_RATIOS,
        kl_nats=_rows(monotone(kl_SG.mean(0))),
        loyalty=loyalty_of(agrees_SG, pictures),
    )


def loyalty_of(agrees_SG: Tensor, pictures: Sequence[int]) -> Loyalty:
    """Smoothed means, and standard errors by picture.

    Questions about one picture err together, so a picture counts as one draw. No error is below
    1 / S, about that of a single disagreement: S agreements in a row are no certainty. The last
    cell of the first row is the dense plan, which agrees by definition.
    """
    num_samples = len(pictures)
    drawn_S = torch.unique(torch.tensor(pictures), return_inverse=True)[1]
    num_pictures = int(drawn_S.max()) + 1
    mean_G = agrees_SG.mean(0)
    sums_PG = agrees_SG.new_zeros(num_pictures, *mean_G.shape)
    sums_PG.index_add_(0, drawn_S, agrees_SG - mean_G)
    error_G = torch.ones_like(mean_G)
    if num_pictures > 1:
        variance_G = sums_PG.square().sum(0) * num_pictures / (num_pictures - 1)
        error_G = (variance_G.sqrt() / num_samples).clamp(1 / num_samples, 1)
    error_G[0, -1] = 0
    return Loyalty(
        num_samples=num_samples,
        mean=_rows(isotonic_grid(mean_G).clamp(0, 1)),
        standard_error=_rows(error_G),
    )


def _rows(grid_G: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in grid_G.tolist())


def skip_counts(num_layers: int, *, num_candidates: int) -> list[int]:
    """Counts of the grid; the last one is all candidates, so that no plan lies beyond it."""
    inner = {round(ratio * num_layers) for ratio in SKIP_RATIOS}
    return sorted({count for count in inner if count < num_candidates} | {num_candidates})


def monotone(kl_G: Tensor) -> Tensor:
    """More tokens never worse, more skips never better.

    Sampling noise would otherwise make the allocator leave part of a budget unspent.
    """
    return kl_G.cummin(dim=1).values.cummax(dim=0).values
