"""Where single families end: what they refuse, and how it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor, CLIPImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm

from allrounder.engine.execution.runner import ModelRunner
from allrounder.errors import InvalidImage, ModelUnsupported
from allrounder.models.families import family_of
from allrounder.models.loading import load_adapter
from tests.engine.driving import finished
from tests.families.idefics3 import SIDE as TILE
from tests.families.idefics3 import tiny_idefics3_folder, tiny_smolvlm_folder
from tests.families.reference import Reference, assert_same_tokens
from tests.tiny import NUM_VISUAL, SIDE, chat_request, tiny_llava_folder


@pytest.mark.timeout(60)
def test_llava_with_all_features_puts_its_class_token_before_the_grid(tmp_path: Path) -> None:
    folder = tiny_llava_folder(tmp_path / "full", select="full")
    adapter, reference = load_adapter(str(folder), device="cpu"), Reference(folder)
    runner, request = ModelRunner(adapter), chat_request(3)
    layout = adapter.layout(request.images[0])
    assert layout.runs == (NUM_VISUAL + 1,)
    assert layout.grid.offset == 1
    assert layout.grid.rows * layout.grid.cols == NUM_VISUAL
    sequence = finished(runner, request)
    prompt_ids, theirs = reference.generate(request)
    assert list(sequence.prepared.prompt.token_ids) == prompt_ids
    logits = reference.logits(request, theirs, sequence.plan)
    assert_same_tokens(sequence.token_ids, theirs, logits)


@pytest.mark.parametrize(("width", "height"), [(2000, 3), (1, 201), (16384, 1)])
def test_a_thread_of_an_image_is_refused_where_its_short_side_would_be_scaled_up(
    tmp_path: Path, width: int, height: int
) -> None:
    folder = tiny_llava_folder(tmp_path / "m")
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE})
    family = family_of("llava")
    assert family.layout(config, processor, width=200, height=1).runs == (NUM_VISUAL,)
    with pytest.raises(InvalidImage, match=f"{width} x {height}") as raised:
        family.layout(config, processor, width=width, height=height)
    assert raised.value.param == "image"


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (96, 96, {"shortest_edge": SIDE}),
        (240, 96, {"shortest_edge": SIDE}),
        (96, 240, {"shortest_edge": SIDE}),
        (120, 240, {"height": 2 * SIDE, "width": 3 * SIDE}),
    ],
)
def test_llava_says_which_part_of_an_image_its_grid_shows(
    tmp_path: Path, width: int, height: int, size: dict[str, int]
) -> None:
    folder = tiny_llava_folder(tmp_path / "m")
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    processor.image_processor = CLIPImageProcessorPil(
        size=size, crop_size={"height": SIDE, "width": SIDE}, do_normalize=False
    )
    area = family_of("llava").layout(config, processor, width=width, height=height).grid.area
    # Red grows to the right and green downwards, so that a colour tells where a pixel was.
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0] = np.linspace(0, 255, width)[None]
    ramps[..., 1] = np.linspace(0, 255, height)[:, None]
    seen = processor.image_processor(images=[Image.fromarray(ramps)], return_tensors="np")
    red, green = seen["pixel_values"][0, 0], seen["pixel_values"][0, 1]
    left, top, across, down = area
    # The outermost pixels show the middle of the outermost places.
    margin = 0.5 / SIDE
    shown = [red.min(), green.min(), red.max(), green.max()]
    expected = [
        left + margin * across,
        top + margin * down,
        left + (1 - margin) * across,
        top + (1 - margin) * down,
    ]
    np.testing.assert_allclose(shown, expected, atol=0.02)


@pytest.mark.parametrize("longest_edge", [TILE * 2 + 1, TILE // 2])
def test_idefics3_refuses_sizes_for_which_the_library_miscounts_tiles(
    tmp_path: Path, longest_edge: int
) -> None:
    folder = tiny_idefics3_folder(tmp_path / "m")
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    processor.image_processor.size = {"longest_edge": longest_edge}
    with pytest.raises(ModelUnsupported, match=f"{longest_edge} is not a whole number of tiles"):
        family_of("idefics3").layout(config, processor, width=40, height=30)


def test_smolvlm_without_num2words_is_refused_naming_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    folder = tiny_smolvlm_folder(tmp_path / "m")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelUnsupported, match="num2words"):
        load_adapter(str(folder), device="cpu")
