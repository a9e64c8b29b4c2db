"""Calibrates a router on unlabelled samples: KL and loyalty of its plans on a grid of sizes.

Shapes: L layers, S samples; a grid G has one row R per count of skipped layers and one column C
per share of kept tokens; N values of one line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from allrounder.measure.plans import plan_by, view_of
from allrounder.pruning.par import Par
from allrounder.pruning.strategy import Context
from allrounder.router.network import MetaRouter
from allrounder.router.weights import Calibration, Loyalty
from allrounder.training.bank import ImageBank
from allrounder.training.similarity import block_influence

TOKEN_RATIOS = (0.01, 0.03, 0.06, 0.09, 0.12, 0.16, 0.2, 0.25, 0.31, 0.4, 0.5, 0.65, 0.8, 0.9, 1.0)
SKIP_RATIOS = tuple(sixteenths / 16 for sixteenths in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12))
_MAX_SWEEPS = 1000
_TOLERANCE = 1e-9


def calibrate(network: MetaRouter, bank: ImageBank) -> Calibration:
    """Block influence per layer, and KL and loyalty of the router's plans on a grid of sizes.

    Those of a size are means over the bank's questions; loyalty holds for greedy answers
    of as many tokens as the bank's model may give.
    """
    frozen, candidates = bank.frozen, network.config.candidates
    context = Context(geometry=frozen.adapter.geometry, router_candidates=candidates)
    skips = skip_counts(frozen.num_layers, num_candidates=len(candidates))
    influences, divergences, image_ids = [], [], []
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
            divergences += frozen.compare(trials)
            image_ids += [image_idx for image_idx, _ in batch]
            bar.update(len(batch))
    shape = (len(image_ids), len(skips), len(TOKEN_RATIOS))
    kl_SG = torch.tensor([each.kl_nats for each in divergences], dtype=torch.float64).view(shape)
    agrees_SG = torch.tensor([each.agrees for each in divergences], dtype=torch.float64).view(shape)
    return Calibration(
        block_influence=tuple(torch.stack(influences).mean(0).tolist()),
        skip_ratios=tuple(skip / frozen.num_layers for skip in skips),
        token_ratios=TOKEN_RATIOS,
        kl_nats=_rows(monotone(kl_SG.mean(0))),
        loyalty=loyalty_of(agrees_SG, image_ids),
    )


def loyalty_of(agrees_SG: Tensor, image_ids: Sequence[int]) -> Loyalty:
    """Smoothed means, and standard errors by image.

    Questions about one image err together, so a image counts as one draw. No error is below
    1 / S, about that of a single disagreement: S agreements in a row are no certainty. The last
    cell of the first row is the dense plan, which agrees by definition.
    """
    num_samples = len(image_ids)
    drawn_S = torch.unique(torch.tensor(image_ids), return_inverse=True)[1]
    num_images = int(drawn_S.max()) + 1
    mean_G = agrees_SG.mean(0)
    sums_PG = agrees_SG.new_zeros(num_images, *mean_G.shape)
    sums_PG.index_add_(0, drawn_S, agrees_SG - mean_G)
    error_G = torch.ones_like(mean_G)
    if num_images > 1:
        variance_G = sums_PG.square().sum(0) * num_images / (num_images - 1)
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


def isotonic_grid(values_RC: Tensor) -> Tensor:
    """The nearest grid (least squares) that never falls along a row and never rises down a column.

    Isotonic regression of rows and of columns in turn, by Dykstra's projections, which end at the
    joint regression (Dykstra and Robertson, Annals of Statistics 1982).
    """
    grid_RC = values_RC.double()
    by_rows_RC, by_columns_RC = torch.zeros_like(grid_RC), torch.zeros_like(grid_RC)
    for _ in range(_MAX_SWEEPS):
        before_RC = grid_RC
        rows_RC = isotonic(grid_RC + by_rows_RC)
        by_rows_RC = grid_RC + by_rows_RC - rows_RC
        grid_RC = isotonic((rows_RC + by_columns_RC).T.flip(1)).flip(1).T
        by_columns_RC = rows_RC + by_columns_RC - grid_RC
        if (grid_RC - before_RC).abs().max() < _TOLERANCE:
            break
    # What is left of the sweeps' tolerance would be steps in the wrong direction.
    return grid_RC.cummax(dim=1).values.flip(0).cummax(dim=0).values.flip(0)


def isotonic(lines_RN: Tensor) -> Tensor:
    """Each line's nearest never-falling line: max over starts of min over ends of block means."""
    num = lines_RN.shape[1]
    sums_RN = torch.nn.functional.pad(lines_RN.cumsum(1), (1, 0))
    starts_N, ends_N = torch.arange(num)[:, None], torch.arange(num)[None]
    sizes_NN = (ends_N - starts_N + 1).to(lines_RN)
    means_RNN = (sums_RN[:, None, 1:] - sums_RN[:, :-1, None]) / sizes_NN.clamp(min=1)
    open_RNN = means_RNN.masked_fill(ends_N < starts_N, math.inf)
    least_RNN = open_RNN.flip(2).cummin(dim=2).values.flip(2)
    return least_RNN.masked_fill(ends_N < starts_N, -math.inf).amax(dim=1)
