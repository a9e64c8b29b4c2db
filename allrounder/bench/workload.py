"""Workload of the engine benchmark: prompts of LLaVA-1.5-7B's proportions, and their plans.

Counts are written for 576 visual tokens, 64 text rows and 32 layers; another geometry gets the same
shares of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from allrounder.bench.noise_images import SIDE, noise_image
from allrounder.core import (
    BudgetRequest,
    ChatRequest,
    ImageInput,
    ModelGeometry,
    Plan,
    PromptShape,
    SamplingParams,
    Selection,
)
from allrounder.core.budget import Budget, Counts, FlopsShare
from allrounder.cost import cost_of
from allrounder.models.adapter import Adapter

NEW_TOKENS = 16
NUM_IMAGES = 8
STRATEGY = "random"
DENSE = FlopsShare(share=1.0)
_VISUAL, _TEXT, _LAYERS = 576, 64, 32
_LEAST_TEXT = 24
_PUBLISHED = (
    (272, 30),
    (224, 28),
    (144, 28),
    (176, 24),
    (128, 24),
    (192, 32),
    (128, 32),
    (64, 32),
)
_FILLER = "Say which of the things in the picture stands nearest to the one that looks at it. "


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One question about each of a few images; every prompt has the same shape."""

    images: tuple[ImageInput, ...]
    question: str
    shape: PromptShape

    def requests(
        self, forms: Sequence[Budget], *, image_of: Sequence[int], max_tokens: int = NEW_TOKENS
    ) -> list[ChatRequest]:
        """One request per form. The same image gives `random` the same choices."""
        return [
            ChatRequest(
                id=f"bench-{idx}",
                images=(self.images[which],),
                question=self.question,
                budget=BudgetRequest(form=form, requested=None, strategy=STRATEGY),
                sampling=SamplingParams(max_tokens=max_tokens),
                arrival=time.monotonic(),
            )
            for idx, (form, which) in enumerate(zip(forms, image_of, strict=True))
        ]


def make_workload(adapter: Adapter) -> Workload:
    """Images that give about 576 tokens where the family has native resolution."""
    side = SIDE if adapter.fixed_visual else 2 * SIDE
    images = tuple(noise_image(seed, side=side) for seed in range(NUM_IMAGES))
    layout = adapter.layout(images[0])
    num_text = max(_LEAST_TEXT, _TEXT * layout.num_visual // _VISUAL)
    question = _FILLER[0]
    for length in range(1, 8 * num_text):
        longer = (_FILLER * num_text)[:length]
        if adapter.prompt(longer, [layout]).shape.num_text > num_text:
            break
        question = longer
    return Workload(
        images=images,
        question=question,
        shape=adapter.prompt(question, [layout]).shape,
    )


def scaled(tokens: int, layers: int, *, num_visual: int, num_layers: int) -> Counts:
    """Counts meant for 576 tokens and 32 layers, as the same shares of another geometry."""
    return Counts(
        tokens=max(1, tokens * num_visual // _VISUAL), layers=layers * num_layers // _LAYERS
    )


def mixed_counts(*, num_visual: int, num_layers: int) -> list[Counts]:
    """Eight plans: the operating points that PAR (Table 1) and AutoPrune (Table 1) publish."""
    return [scaled(*point, num_visual=num_visual, num_layers=num_layers) for point in _PUBLISHED]


def counts_within(geometry: ModelGeometry, shape: PromptShape, share: float) -> Counts | None:
    """Seven eighths of the layers, fewer only where the text alone costs too much, and the most
    tokens that cost no more than `share` of dense prefill."""
    for layers in range(geometry.num_layers * 7 // 8, geometry.num_layers // 2 - 1, -1):
        tokens = _most_tokens(geometry, shape, layers, share)
        if tokens:
            return Counts(tokens=tokens, layers=layers)
    return None


def _most_tokens(geometry: ModelGeometry, shape: PromptShape, layers: int, share: float) -> int:
    """The most visual tokens that fit beside that many layers; 0 where none do."""
    low, high = 0, shape.num_visual - 1
    while low < high:
        middle = (low + high + 1) // 2
        plan = Plan(
            strategy=STRATEGY,
            num_visual=shape.num_visual,
            runs=tuple(idx < layers for idx in range(geometry.num_layers)),
            selections=(Selection(layer_idx=0, count=middle),),
        )
        if cost_of(geometry, shape, plan).prefill_ratio <= share:
            low = middle
        else:
            high = middle - 1
    return low
