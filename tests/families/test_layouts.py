"""What a family says of an image's size is what the library's processor and tower make of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.offline import warm_up
from allrounder.errors import InvalidField, InvalidImage
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import finished
from tests.families.cases import FamilyCase
from tests.families.reference import Reference
from tests.tiny import chat_request, noise_image

pytestmark = pytest.mark.timeout(90)
NUM_SIZES = 60
EXTREME = [(1, 1), (1, 2), (2000, 3), (3, 2000), (1, 700), (513, 2)]
LAST_TILE_IS_THE_WHOLE_IMAGE = ("internvl", "idefics3", "smolvlm")


def _sizes() -> list[tuple[int, int]]:
    draw = random.Random(0)
    return [(draw.randint(2, 400), draw.randint(2, 400)) for _ in range(NUM_SIZES)]


def _assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, atol=tolerance * scale, rtol=0)


def _features(reference: Reference, inputs: dict[str, Tensor]) -> Tensor:
    """Visual tokens of the request's images as the library makes them."""
    text = ("input_ids", "attention_mask", "mm_token_type_ids")
    pixels = {name: value for name, value in inputs.items() if name not in text}
    with torch.inference_mode():
        features = reference.model.get_image_features(**pixels, return_dict=True).pooler_output
    return torch.cat([tokens.reshape(-1, tokens.shape[-1]) for tokens in features])


@pytest.mark.parametrize("sizes", [_sizes(), EXTREME], ids=["random", "extreme"])
def test_the_prompt_and_the_tokens_of_any_size_are_the_librarys_or_the_size_is_refused(
    adapter: TransformersAdapter, reference: Reference, sizes: list[tuple[int, int]]
) -> None:
    for seed, (width, height) in enumerate(sizes):
        image = noise_image(seed, width=width, height=height)
        request = chat_request(images=(image,))
        try:
            inputs = reference.inputs(request)
        except ValueError:
            with pytest.raises(InvalidImage):
                adapter.layout(image)
            continue
        layout = adapter.layout(image)
        prompt = adapter.prompt(request.question, [layout])
        assert list(prompt.token_ids) == inputs["input_ids"][0].tolist(), (width, height)
        (encoded,) = adapter.encode([image])
        assert len(encoded.tokens_VD) == layout.num_visual == prompt.shape.num_visual
        _assert_close(encoded.tokens_VD, _features(reference, inputs), 1e-4)


def test_sizes_are_laid_out_differently_where_the_family_tiles(
    case: FamilyCase, adapter: TransformersAdapter
) -> None:
    counts = {
        adapter.layout(noise_image(0, width=width, height=height)).num_visual
        for width, height in case.sizes
    }
    assert len(counts) == 1 if case.name == "llava" else len(counts) > 2
    assert (adapter.fixed_visual is None) == (len(counts) > 1)


def test_a_batch_of_different_sizes_encodes_as_one_image_at_a_time(
    case: FamilyCase, adapter: TransformersAdapter
) -> None:
    images = [
        noise_image(idx, width=width, height=height)
        for idx, (width, height) in enumerate((*case.sizes, (1, 1), *case.sizes))
    ]
    together = adapter.encode(images)
    for image, visual in zip(images, together, strict=True):
        (alone,) = adapter.encode([image])
        _assert_close(visual.tokens_VD, alone.tokens_VD, 1e-5)


def test_the_grid_is_what_shows_the_whole_image(
    case: FamilyCase, adapter: TransformersAdapter, reference: Reference
) -> None:
    """Noise in the tile of the whole image reaches the grid's tokens, all of them and no others."""
    whole = -1 if case.name in LAST_TILE_IS_THE_WHOLE_IMAGE else 0
    for width, height in case.sizes:
        image = noise_image(1, width=width, height=height)
        inputs = reference.inputs(chat_request(images=(image,)))
        before = _features(reference, inputs)
        pixels = inputs["pixel_values"]
        pixels.view(-1, *pixels.shape[-3:])[whole] += torch.randn(pixels.shape[-3:])
        changed = (_features(reference, inputs) - before).abs().amax(-1) > 1e-6
        grid = adapter.layout(image).grid
        expected = torch.zeros_like(changed)
        expected[grid.offset : grid.offset + grid.rows * grid.cols] = True
        assert changed.tolist() == expected.tolist(), (width, height)


def test_an_answer_depends_on_the_image(case: FamilyCase, runner: ModelRunner) -> None:
    width, height = case.sizes[1]
    answers = set()
    for seed in range(4):
        image = noise_image(seed, width=width, height=height)
        sequence = finished(runner, chat_request(id=f"{seed}", images=(image,)))
        answers.add(tuple(sequence.token_ids))
    assert len(answers) > 1


def test_a_warm_up_goes_through_every_stage(runner: ModelRunner) -> None:
    warm_up(runner)
    assert runner.kv_bytes_held() == 0


def test_more_images_than_the_family_takes_are_refused(
    case: FamilyCase, adapter: TransformersAdapter, runner: ModelRunner
) -> None:
    limit: Any = adapter.max_images
    assert (limit or 2) == case.max_images
    most = runner.capabilities().max_images
    assert most == (limit or 16)
    with pytest.raises(InvalidField, match=f"at most {most} images") as raised:
        runner.prepare(chat_request(num_images=most + 1))
    assert raised.value.param == "images"
