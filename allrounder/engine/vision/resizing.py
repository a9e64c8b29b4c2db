"""A picture scaled down until its visual tokens fit: the request is then a dense one.

Knows nothing of torch: what a size costs is the adapter's pure `layout`.
"""

from __future__ import annotations

from dataclasses import replace

from allrounder.core import ImageInput
from allrounder.engine.planning.prepared import PreparedRequest
from allrounder.errors import BudgetTooSmall, InvalidImage
from allrounder.models.adapter import Adapter
from allrounder.pruning.per_image import quotas

_STEPS = 128


def resized(adapter: Adapter, prepared: PreparedRequest) -> PreparedRequest:
    """The same question about smaller pictures, within the count that the budget allows.

    Raises:
        BudgetTooSmall: a picture has more tokens at any size; the fewest possible are named.
    """
    shape, allocation = prepared.shape, prepared.allocation
    shares = quotas(shape.visual_per_image, allocation.count)
    images = tuple(
        _fitting(adapter, image, most)
        for image, most in zip(prepared.request.images, shares, strict=True)
    )
    layouts = tuple(adapter.layout(image) for image in images)
    prompt = adapter.converse(prepared.request.conversation, layouts)
    bound = replace(
        allocation.plan,
        num_visual=prompt.shape.num_visual,
        selections=(),
        choice_flops=allocation.plan.choice_flops if allocation.num_skipped else 0,
    )
    return replace(
        prepared,
        request=replace(prepared.request, images=images),
        prompt=prompt,
        shape=prompt.shape,
        layouts=layouts,
        allocation=replace(allocation, plan=bound, count=prompt.shape.num_visual),
        unscaled=shape,
    )


def _fitting(adapter: Adapter, image: ImageInput, most: int) -> ImageInput:
    """Scaled to as many tokens as may be; of sizes with equally many, the largest."""
    counts: dict[int, int] = {}
    for step in range(1, _STEPS + 1):
        try:
            counts[step] = adapter.layout(_scaled(image, step)).num_visual
        except InvalidImage:
            continue
    fitting = [step for step, count in counts.items() if count <= most]
    if not fitting:
        raise BudgetTooSmall(
            f"strategy 'resize' cannot scale this image of {image.width} x {image.height} to "
            f"{most} visual tokens; the fewest possible are {min(counts.values())}",
            param="budget",
        )
    best = max(fitting, key=lambda step: (counts[step], step))
    target = _scaled(image, best)
    return adapter.resized(image, width=target.width, height=target.height)


def _scaled(image: ImageInput, step: int) -> ImageInput:
    """The size alone: no pixels yet."""
    return replace(
        image,
        width=max(1, image.width * step // _STEPS),
        height=max(1, image.height * step // _STEPS),
        rgb=b"",
    )
