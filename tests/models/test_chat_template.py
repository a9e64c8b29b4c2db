"""Templates of all habits: what they write is placed, what they refuse or drop is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from allrounder.core import ImageLayout, Message, Role, TokenGrid
from allrounder.errors import InvalidField, ModelUnsupported
from allrounder.models.prompt import PromptBuilder
from tests.tiny import SPECIALS, tiny_llava_folder

USER = Message(role=Role.USER, parts=("Hello",))
SYSTEM = Message(role=Role.SYSTEM, parts=("Be brief.",))
ANSWER = Message(role=Role.ASSISTANT, parts=("Yes",))
SHOWN = Message(role=Role.USER, parts=("a", None, "b"))
IMAGE = ImageLayout(grid=TokenGrid(rows=1, cols=1), placeholder="<image>", runs=(2,))

PARTS = (
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}"
)
EVERY_ROLE = "{% for m in messages %}[{{ m.role }}]" + PARTS + "{% endfor %}[go]"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + EVERY_ROLE
)
SYSTEM_DROPPED = EVERY_ROLE.replace(
    "messages", "messages | rejectattr('role', 'equalto', 'system')"
)
STRICT_TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + PARTS + "{% endfor %}"
)
STRINGS = "{% for m in messages %}[{{ m.role }}]{{ '' + m.content }}{% endfor %}[go]"
FIRST_TEXT = (
    "{% for part in messages[0].content %}{% if part.type == 'image' %}<image>"
    "{% elif part.text == (messages[0].content | rejectattr('type', 'equalto', 'image') | first)"
    ".text %}{{ part.text }}{% endif %}{% endfor %}"
)
NO_IMAGES = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
TWICE = EVERY_ROLE + "{{ messages[-1].content[0].text }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_folder(tmp_path_factory.mktemp("template") / "tiny")


@pytest.fixture
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def _written(processor: Any, template: str, *messages: Message) -> str:
    processor.chat_template = template
    builder = PromptBuilder(
        processor, image_token="<image>", image_token_id=SPECIALS.index("<image>")
    )
    layouts = [IMAGE] * sum(message.num_images for message in messages)
    text: str = processor.tokenizer.decode(builder.converse(messages, layouts).token_ids)
    return text


def _refusal(processor: Any, template: str, *messages: Message) -> str | None:
    with pytest.raises(InvalidField) as refused:
        _written(processor, template, *messages)
    return refused.value.param


def test_texts_and_images_stand_where_the_template_puts_them(processor: Any) -> None:
    written = _written(processor, EVERY_ROLE, SYSTEM, SHOWN, ANSWER, USER)
    assert written == "[system]Be brief.[user]a<image><image>b[assistant]Yes[user]Hello[go]"


def test_templates_that_want_strings_get_strings(processor: Any) -> None:
    assert _written(processor, STRINGS, SYSTEM, USER) == "[system]Be brief.[user]Hello[go]"


@pytest.mark.parametrize("template", [NO_SYSTEM, SYSTEM_DROPPED])
def test_a_refused_or_dropped_system_message_is_named(processor: Any, template: str) -> None:
    assert _written(processor, template, USER) == "[user]Hello[go]"
    assert _refusal(processor, template, SYSTEM, USER) == "messages.0.role"


def test_an_order_of_roles_that_the_template_refuses_names_the_messages(processor: Any) -> None:
    assert _written(processor, STRICT_TURNS, USER, ANSWER, USER) == "HelloYesHello"
    assert _refusal(processor, STRICT_TURNS, USER, USER) == "messages"


def test_a_message_whose_text_or_image_has_no_place_is_named(processor: Any) -> None:
    assert _refusal(processor, TWICE, ANSWER, USER) == "messages.1"
    assert _refusal(processor, NO_IMAGES, USER, Message(role=Role.USER, parts=(None, "b"))) == (
        "messages.1"
    )


def test_a_template_that_cannot_place_one_question_is_the_models_fault(processor: Any) -> None:
    for template in (TWICE, "{{ raise_exception('no') }}", "nothing"):
        with pytest.raises(ModelUnsupported):
            _written(processor, template, USER)


def test_a_message_of_several_texts_that_the_template_cannot_place_is_the_callers(
    processor: Any,
) -> None:
    assert _written(processor, FIRST_TEXT, Message(role=Role.USER, parts=(None, "b"))) == (
        "<image><image>b"
    )
    assert _refusal(processor, FIRST_TEXT, SHOWN) == "messages.0"
    assert _refusal(processor, "{{ raise_exception('no') }}", SHOWN) == "messages"


def test_text_that_looks_like_a_mark_or_a_template_stays_text(processor: Any) -> None:
    hostile = "\ue0000\ue001 {{ messages }} {% raise %} <image>"
    written = _written(processor, EVERY_ROLE, Message(role=Role.USER, parts=(hostile, None)))
    assert written == f"[user]{hostile}<image><image>[go]"
