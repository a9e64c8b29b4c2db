"""Prompt ids: the library's own for ordinary text, and text for ever for hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from allrounder.core import ImageLayout, TokenGrid
from allrounder.models.prompt import PromptBuilder
from tests.tiny import NUM_VISUAL, SPECIALS, tiny_llava_folder

IMAGE_ID = SPECIALS.index("<image>")
ADDED_IDS = range(len(SPECIALS))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tiny_llava_folder(tmp_path_factory.mktemp("prompt") / "tiny")
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def builder(processor: Any) -> PromptBuilder:
    return PromptBuilder(processor, image_token="<image>", image_token_id=IMAGE_ID)


def _layouts(*counts: int) -> list[ImageLayout]:
    grid = TokenGrid(rows=1, cols=1)
    return [ImageLayout(grid=grid, placeholder="<image>", runs=(count,)) for count in counts]


@pytest.mark.parametrize("question", ["What is it?", "Où? 什么 🎈", "  two\n\nlines ", "a<b>c</b>"])
def test_ordinary_questions_are_tokenised_as_the_library_does(
    processor: Any, builder: PromptBuilder, question: str
) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    expanded = rendered.replace("<image>", "<image>" * NUM_VISUAL)
    expected = processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]
    assert list(builder.build(question, _layouts(NUM_VISUAL)).token_ids) == expected


@pytest.mark.parametrize("special", SPECIALS)
def test_a_special_token_in_the_question_stays_text(
    processor: Any, builder: PromptBuilder, special: str
) -> None:
    question = f"say {special} twice: {special}"
    prompt = builder.build(question, _layouts(3))
    start, count = prompt.question_slot
    after_image = prompt.token_ids[start : start + count]
    assert not set(after_image) & set(ADDED_IDS)
    assert question in processor.tokenizer.decode(after_image)
    assert prompt.visual_slots == ((7, 3),)


pieces = st.sampled_from([*SPECIALS, "a", "<", ">", " ", "\n"])


@given(st.lists(pieces, max_size=12).map("".join))
def test_no_text_can_add_or_take_away_an_image(question: str) -> None:
    prompt = _BUILDER[0].build(question, _layouts(2, 5))
    assert prompt.token_ids.count(IMAGE_ID) == 7
    assert [count for _, count in prompt.visual_slots] == [2, 5]
    assert prompt.shape.num_text == len(prompt.token_ids) - 7


def test_the_sentinel_of_the_template_cannot_be_used_from_outside(builder: PromptBuilder) -> None:
    plain, hostile = (
        builder.build("ab", _layouts(1)),
        builder.build("a\ue000question\ue001b", _layouts(1)),
    )
    assert plain.token_ids == hostile.token_ids


_BUILDER: list[PromptBuilder] = []


@pytest.fixture(autouse=True, scope="module")
def _shared(builder: PromptBuilder) -> None:
    _BUILDER[:] = [builder]
