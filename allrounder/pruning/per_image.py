"""Several images in one request: each gets its share of the tokens, and is chosen from alone.

Shapes: V visual tokens of all images, v of one, K that go on, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from allrounder.core import PromptShape
from allrounder.pruning.strategy import Choice, Strategy, View
from allrounder.pruning.vision_facts import VisionFeatures


def quotas(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` split in proportion to `sizes`, none over its size, at least one each if it allows.

    What rounding down leaves goes to the largest remainders; ties go to the earlier one.
    """
    total = sum(sizes)
    if count >= total:
        return tuple(sizes)
    first = int(count >= sum(size > 0 for size in sizes))
    shares = [max(count * size // total, min(first, size)) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda idx: (-(count * sizes[idx] % total), idx))
    while sum(shares) > count:
        shares[max(range(len(shares)), key=lambda idx: (shares[idx], -idx))] -= 1
    while sum(shares) < count:
        for idx in order:
            if shares[idx] < sizes[idx] and sum(shares) < count:
                shares[idx] += 1
    return tuple(shares)


@dataclass(frozen=True, kw_only=True)
class PerImage(Strategy):
    """A token strategy that sees one image at a time, with a quota in proportion to its tokens."""

    def choose_image(self, view: View, count: int) -> Choice:
        """The choice of one image; 1 <= count <= v."""
        raise AssertionError(f"{self.name} chooses nothing")

    def select(self, view: View, count: int) -> Tensor:
        assert not self.merges, f"{self.name} merges: its tokens are chosen with weights"
        return self.choose(view, count).rows

    def choose(self, view: View, count: int) -> Choice:
        sizes = view.visual_per_image or (len(view.visual_VD),)
        starts = [0, *accumulate(sizes)]
        rows: list[Tensor] = []
        blocks: list[Tensor] = []
        for idx, quota in enumerate(quotas(sizes, count)):
            if quota == 0:
                if self.merges:
                    blocks.append(view.visual_VD.new_zeros(0, sizes[idx], dtype=torch.float32))
                continue
            part = _image_view(view, idx, starts[idx], starts[idx + 1])
            choice = self.choose_image(part, quota)
            rows.append(choice.rows + starts[idx])
            if choice.weights is not None:
                blocks.append(choice.weights)
        weights = torch.block_diag(*blocks) if self.merges else None
        return Choice(rows=torch.cat(rows), weights=weights)

    def over_images(self, shape: PromptShape, count: int, flops: Callable[[int, int], int]) -> int:
        """Sum of `flops(tokens, quota)` over the images."""
        sizes = shape.visual_per_image
        return sum(
            flops(size, quota) for size, quota in zip(sizes, quotas(sizes, count), strict=True)
        )


def _image_view(view: View, idx: int, start: int, stop: int) -> View:
    if start == 0 and stop == len(view.visual_VD):
        return view
    return replace(
        view,
        visual_VD=view.visual_VD[start:stop],
        visual_per_image=(stop - start,),
        grids=view.grids[idx : idx + 1],
        vision=view.vision and view.vision.part(start, stop),
        cls_attention_V=None,
    )


def vision_of(view: View) -> VisionFeatures:
    assert view.vision is not None, "the images are encoded with facts before the strategy runs"
    return view.vision
