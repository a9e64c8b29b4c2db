"""Vision pretraining: every projected patch learns to resemble the words for what it shows.

It stands in for CLIP and LLaVA's first stage; the generator's ground truth is the teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from allrounder.demo.scene_pool import PatchLabels, ScenePool
from allrounder.demo.scenes import COLOURS, GRID, NUM_PATCHES, SHAPES, SIZES
from allrounder.training.muon import BatchedMuon
from research.demo_model.checkpoint import load_checkpoint, save_checkpoint
from research.demo_model.lvlm import WIDTH, WORD_STD, encode_images, to_pixels

logger = logging.getLogger(__name__)
BACKGROUND = "background"
OBJECT = "object"
ROW_WORDS = ("top", "middle", "bottom")
COLUMN_WORDS = ("left", "center", "right")
WORDS = (*COLOURS, *SHAPES, *SIZES, BACKGROUND, OBJECT, *ROW_WORDS, *COLUMN_WORDS)
BACKGROUND_WEIGHT = 0.2
PLACE_WEIGHT = 0.3
CENTRE_WEIGHT = 4.0
WARMUP_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class VisionOptions:
    num_steps: int = 1500
    batch_size: int = 32
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    num_held_back: int = 500
    checkpoint_steps: int = 200
    seed: int = 0


class WordBook(nn.Module):
    """One vector a word, and two readers of the exact row and column used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(len(WORDS), WIDTH) * WORD_STD)
        self.places = nn.Linear(WIDTH, 2 * GRID)

    def rows(self, words: Sequence[str]) -> Tensor:
        return self.vectors[[WORDS.index(word) for word in words]]


@dataclass(frozen=True, kw_only=True)
class PatchLosses:
    total: Tensor
    accuracy: tuple[float, float, float]
    centre_iou: float


def train_vision(
    model: LlavaForConditionalGeneration, pool: ScenePool, folder: Path, options: VisionOptions
) -> WordBook:
    """Train tower and projector in place and return the word vectors they were aligned with."""
    book = WordBook()
    modules = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
    muon, adam = _optimisers(modules, book, options)
    path = folder / "vision.pt"
    start = 0
    if (state := load_checkpoint(path)) is not None:
        modules.load_state_dict(state["modules"])
        book.load_state_dict(state["book"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        start = state["step"]
    num_train = len(pool.images) - options.num_held_back
    for step in (bar := tqdm(range(start, options.num_steps), desc="vision", initial=start)):
        rng = np.random.default_rng([options.seed, step])
        losses = _losses(model, book, pool, np.sort(rng.integers(0, num_train, options.batch_size)))
        _update((muon, adam), losses.total, _rate(step, options.num_steps), options)
        if step % 10 == 0:
            bar.set_postfix(_summary(losses))
        if (step + 1) % options.checkpoint_steps == 0 or step + 1 == options.num_steps:
            state = {"modules": modules.state_dict(), "book": book.state_dict()}
            state |= {"muon": muon.state_dict(), "adam": adam.state_dict(), "step": step + 1}
            save_checkpoint(path, state)
            _validate(model, book, pool, step + 1, num_train)
    return book


def _optimisers(
    modules: nn.Module, book: WordBook, options: VisionOptions
) -> tuple[BatchedMuon, torch.optim.AdamW]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = list(book.parameters())
    for name, param in modules.named_parameters():
        (matrices if param.ndim == 2 and "embed" not in name else others).append(param)
    muon = BatchedMuon(matrices, lr=options.muon_lr)
    adam = torch.optim.AdamW(others, lr=options.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return muon, adam


def _rate(step: int, num_steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / num_steps)


def _update(
    optimisers: tuple[BatchedMuon, torch.optim.AdamW],
    loss: Tensor,
    rate: float,
    options: VisionOptions,
) -> None:
    for optimiser, lr in zip(optimisers, (options.muon_lr, options.adam_lr), strict=True):
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = lr * rate
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


def _losses(
    model: LlavaForConditionalGeneration,
    book: WordBook,
    pool: ScenePool,
    indexes: NDArray[np.int64],
) -> PatchLosses:
    patches = encode_images(model, to_pixels(pool.images[indexes]))
    labels = pool.patch_labels(indexes)
    shown = torch.from_numpy(labels.colour < len(COLOURS))
    total, accuracy = _word_losses(patches, book, labels, shown)
    total = total + PLACE_WEIGHT * _place_loss(patches, book)
    centre = torch.from_numpy(labels.centre).bool()
    logits = (patches @ book.rows([OBJECT]).T).squeeze(-1)
    weight = torch.tensor(CENTRE_WEIGHT)
    total = total + F.binary_cross_entropy_with_logits(logits, centre.float(), pos_weight=weight)
    found = logits > 0
    overlap = (found & centre).sum() / (found | centre).sum().clamp(min=1)
    return PatchLosses(total=total, accuracy=accuracy, centre_iou=overlap.item())


def _word_losses(
    patches: Tensor, book: WordBook, labels: PatchLabels, shown: Tensor
) -> tuple[Tensor, tuple[float, float, float]]:
    weight = torch.where(shown, 1.0, BACKGROUND_WEIGHT)
    losses, accuracy = [], []
    for names, classes in (
        (COLOURS, labels.colour),
        (SHAPES, labels.shape),
        (SIZES, labels.size),
    ):
        target = torch.from_numpy(classes.astype(np.int64))
        logits = patches @ book.rows([*names, BACKGROUND]).T
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        losses.append((loss * weight.flatten()).sum() / weight.sum())
        accuracy.append((logits.argmax(-1) == target)[shown].float().mean().item())
    return torch.stack(losses).sum(), (accuracy[0], accuracy[1], accuracy[2])


def _place_loss(patches: Tensor, book: WordBook) -> Tensor:
    """Rows and columns, roughly in words (thirds of the grid) and exactly by the two readers."""
    place = torch.arange(NUM_PATCHES)
    exact = torch.stack([place // GRID, place % GRID])
    third = (exact >= GRID / 3 - 0.5).long() + (exact >= 2 * GRID / 3 - 0.5).long()
    rows = F.cross_entropy(*_flat(patches @ book.rows(ROW_WORDS).T, third[0]))
    columns = F.cross_entropy(*_flat(patches @ book.rows(COLUMN_WORDS).T, third[1]))
    row_logits, column_logits = book.places(patches).split(GRID, dim=-1)
    return (
        rows
        + columns
        + F.cross_entropy(*_flat(row_logits, exact[0]))
        + F.cross_entropy(*_flat(column_logits, exact[1]))
    )


def _flat(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return logits.flatten(0, 1), target.repeat(len(logits))


def _summary(losses: PatchLosses) -> dict[str, str]:
    colour, shape, size = losses.accuracy
    return {
        "loss": f"{losses.total.item():.2f}",
        "colour": f"{colour:.3f}",
        "shape": f"{shape:.3f}",
        "size": f"{size:.3f}",
        "centre": f"{losses.centre_iou:.3f}",
    }


@torch.no_grad()
def _validate(
    model: LlavaForConditionalGeneration, book: WordBook, pool: ScenePool, step: int, start: int
) -> None:
    chunks = np.array_split(np.arange(start, len(pool.images)), 5)
    rows = [_losses(model, book, pool, chunk) for chunk in chunks if len(chunk)]
    colour, shape, size = np.mean([row.accuracy for row in rows], axis=0)
    centre = np.mean([row.centre_iou for row in rows])
    logger.info(
        "vision step %d, held-back scenes: colour %.3f shape %.3f size %.3f centre IoU %.3f",
        step, colour, shape, size, centre,
    )  # fmt: skip
