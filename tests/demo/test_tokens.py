"""Training sees exactly the token ids that the saved processor makes of a rendered prompt."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast

from allrounder.demo.questions import ask_questions
from allrounder.demo.scenes import NUM_PATCHES, SceneSplit, draw_scene, render, scene_rng
from research.demo_model.lvlm import to_pixels
from research.demo_model.tokens import (
    EOS,
    IMAGE,
    build_processor,
    prefix_ids,
    prompt_ids,
    tokenise,
    train_tokenizer,
)

SCENE = draw_scene(scene_rng(SceneSplit.TEST, 3, 0))
PIXELS = render(SCENE, scene_rng(SceneSplit.TEST, 3, 1))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(0, num_scenes=60)


@pytest.fixture(scope="module")
def processor(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> LlavaProcessor:
    folder: Path = tmp_path_factory.mktemp("processor")
    build_processor(tokenizer).save_pretrained(folder)
    loaded = AutoProcessor.from_pretrained(folder)
    assert isinstance(loaded, LlavaProcessor)
    return loaded


@pytest.mark.parametrize("image_first", [True, False])
def test_training_ids_equal_the_ids_of_the_whole_rendered_conversation(
    tokenizer: PreTrainedTokenizerFast, processor: LlavaProcessor, image_first: bool
) -> None:
    for item in tokenise(tokenizer, ask_questions(SCENE, Random(0))):
        text = {"type": "text", "text": item.question.text}
        parts = [{"type": "image"}, text] if image_first else [text, {"type": "image"}]
        chat = [{"role": "user", "content": parts}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        whole = f"{prompt} {item.question.answers[0]}{EOS}"
        inputs = processor(text=whole, images=Image.fromarray(PIXELS), return_tensors="pt")
        image = [tokenizer.convert_tokens_to_ids(IMAGE)] * NUM_PATCHES
        expected = [*prefix_ids(tokenizer), *image, *item.prompt, *item.answer]
        assert inputs["input_ids"][0].tolist() == expected
        assert prompt_ids(tokenizer, item.question.text) == expected[: -len(item.answer)]


def test_noun_positions_spell_the_head_nouns(tokenizer: PreTrainedTokenizerFast) -> None:
    for item in tokenise(tokenizer, ask_questions(SCENE, Random(1))):
        for phrase, noun in zip(item.question.phrases, item.nouns, strict=True):
            token = tokenizer.decode([item.prompt[noun]]).strip()
            assert item.question.text[phrase.start : phrase.end].endswith(token)


def test_training_pixels_equal_those_of_the_processor(processor: LlavaProcessor) -> None:
    inputs = processor(text=IMAGE, images=Image.fromarray(PIXELS), return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"], to_pixels(PIXELS[None]), atol=1e-6)


def test_a_wide_image_is_scaled_and_not_cropped(processor: LlavaProcessor) -> None:
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, :40] = 255
    inputs = processor(text=IMAGE, images=Image.fromarray(wide), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    assert inputs["pixel_values"][0, :, :, :15].min() > inputs["pixel_values"][0, :, :, 60:].max()


@pytest.mark.parametrize("text", ["Où est le cercle ?", "漢字と🙂", "x" * 50, "  two  spaces\n"])
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
