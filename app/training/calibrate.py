"""Measures a frozen model with its router on unlabelled samples: what a plan of each size harms.

Shapes: L layers; a grid G has one row per count of skipped layers and one column per share of kept
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from app.pruning.base import Context
from app.pruning.par import Par
from app.router.model import MetaRouter
from app.router.store import Calibration
from app.training.bank import PictureBank
from app.training.similarity import block_influence
from app.training.trials import plan_by, view_of

TOKEN_RATIOS = (0.01, 0.04, 0.08, 0.12, 0.18, 0.25, 0.37, 0.5, 0.75, 1.0)
SKIP_RATIOS = (0.0, 1 / 16, 2 / 16, 3 / 16, 4 / 16, 6 / 16, 8 / 16, 12 / 16)


def calibrate(network: MetaRouter, bank: PictureBank) -> Calibration:
    """Block influence per layer, and the mean KL of the router's plans on a grid of sizes."""
    frozen, candidates = bank.frozen, network.config.candidates
    context = Context(geometry=frozen.adapter.geometry, router_candidates=candidates)
    skips = skip_counts(frozen.num_layers, num_candidates=len(candidates))
    influence_L = torch.zeros(frozen.num_layers, dtype=torch.float64)
    kl_G = torch.zeros(len(skips), len(TOKEN_RATIOS), dtype=torch.float64)
    with tqdm(total=bank.num_questions, desc="calibration", unit="sample") as bar:
        for batch in bank.batches():
            answers = frozen.answer([asked for _, asked in batch])
            trials = []
            for answer in answers:
                influence_L += block_influence(frozen, answer.asked)
                view = view_of(answer, frozen, context, seed=0, network=network)
                counts = [max(1, round(ratio * answer.num_visual)) for ratio in TOKEN_RATIOS]
                trials += [
                    (answer, plan_by(Par(), view, num_kept=count, num_skipped=skip))
                    for skip in skips
                    for count in counts
                ]
            kl_nats = [harm.kl_nats for harm in frozen.compare(trials)]
            kl_G += torch.tensor(kl_nats, dtype=torch.float64).view(-1, *kl_G.shape).sum(0)
            bar.update(len(batch))
    return Calibration(
        block_influence=tuple((influence_L / bank.num_questions).tolist()),
        skip_ratios=tuple(skip / frozen.num_layers for skip in skips),
        token_ratios=TOKEN_RATIOS,
        kl_nats=tuple(tuple(row) for row in monotone(kl_G / bank.num_questions).tolist()),
    )


def skip_counts(num_layers: int, *, num_candidates: int) -> list[int]:
    """Counts of the grid; the last one is all candidates, so that no plan lies beyond it."""
    inner = {round(ratio * num_layers) for ratio in SKIP_RATIOS}
    return sorted({count for count in inner if count < num_candidates} | {num_candidates})


def monotone(kl_G: Tensor) -> Tensor:
    """More tokens never worse, more skips never better.

    Sampling noise would otherwise make the allocator leave part of a budget unspent.
    """
    return kl_G.cummin(dim=1).values.cummax(dim=0).values
