"""Chat completion bodies to core types, without HTTP."""

from __future__ import annotations

import pytest

from allrounder.core import Message, Role
from allrounder.core.budget import FlopsShare
from allrounder.errors import AllrounderError
from allrounder_service.api.intake.api_request import ChatLimits
from allrounder_service.api.intake.completion_body import parse_completion
from tests.intake.pictures import data_url, red

LIMITS = ChatLimits(max_tokens_limit=100, max_image_bytes=3000, default_budget=0.75)
IMAGE = {"type": "image_url", "image_url": {"url": data_url(red())}}


def text(words):
    return {"type": "text", "text": words}


def body(*messages, **fields):
    return {"model": "demo", "messages": list(messages), **fields}


def user(*content):
    return {"role": "user", "content": list(content)}


def refused_param(fields):
    with pytest.raises(AllrounderError) as caught:
        parse_completion(fields, LIMITS)
    return caught.value.param


def test_a_conversation_keeps_roles_texts_and_the_places_of_its_images():
    asked = parse_completion(
        body(
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [text("and kind")]},
            user(text(" a "), IMAGE, text("b\n"), IMAGE),
            {"role": "assistant", "content": "c"},
            user(IMAGE, text("d"), text("e")),
        ),
        LIMITS,
    )
    assert asked.messages == (
        Message(role=Role.SYSTEM, parts=("be brief",)),
        Message(role=Role.SYSTEM, parts=("and kind",)),
        Message(role=Role.USER, parts=(" a ", None, "b\n", None)),
        Message(role=Role.ASSISTANT, parts=("c",)),
        Message(role=Role.USER, parts=(None, "d", "e")),
    )
    assert asked.question == "d e"
    places = ["messages.2.content.1", "messages.2.content.3", "messages.4.content.0"]
    assert [image.param for image in asked.images] == [f"{at}.image_url.url" for at in places]
    assert asked.budget.form == FlopsShare(share=0.75)


def said(**fields):
    """The parts of one assistant's message."""
    asked = parse_completion(body({"role": "assistant", **fields}, user(text("a"))), LIMITS)
    return asked.messages[0].parts


def test_a_refusal_is_what_the_assistant_said():
    refusal = {"type": "refusal", "refusal": "no"}
    assert said(content=None, refusal="no") == ("no",)
    assert said(content=[text("a"), refusal]) == ("a", "no")
    assert said(content="a", refusal="no") == ("a", "no")
    assert said(content="a", refusal=None) == ("a",)
    assert said(content=None, refusal=None) == ("",)


@pytest.mark.parametrize(
    ("fields", "num_top"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)],
)
def test_log_probabilities_are_computed_only_where_they_are_asked_for(fields, num_top):
    asked = parse_completion(body(user(IMAGE), **fields), LIMITS)
    assert asked.sampling.top_logprobs == num_top


def test_both_names_of_the_length_mean_the_same_and_errors_use_the_callers():
    newer = parse_completion(body(user(IMAGE), max_completion_tokens=7), LIMITS)
    older = parse_completion(body(user(IMAGE), max_tokens=7), LIMITS)
    assert newer.sampling == older.sampling
    assert (newer.max_tokens_field, older.max_tokens_field) == (
        "max_completion_tokens",
        "max_tokens",
    )
    assert refused_param(body(user(IMAGE), max_completion_tokens=101)) == "max_completion_tokens"
    assert refused_param(body(user(IMAGE), max_tokens=101)) == "max_tokens"


@pytest.mark.parametrize("words", ["a\0b", "\ud800"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_text_that_no_tokenizer_takes_is_refused_in_every_role(words, role):
    assert refused_param(body({"role": role, "content": words})) == "messages.0.content"
    parts = {"role": role, "content": [text("a"), text(words)]}
    assert refused_param(body(parts)) == "messages.0.content.1.text"


@pytest.mark.parametrize("words", ["a\0b", "\ud800"])
def test_a_refusal_that_no_tokenizer_takes_is_refused(words):
    refusal = {"role": "assistant", "content": None, "refusal": words}
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": words}]}
    assert refused_param(body(refusal)) == "messages.0.refusal"
    assert refused_param(body(part)) == "messages.0.content.0.refusal"


def test_text_alone_is_not_held_to_a_default_budget_that_only_images_can_meet():
    assert parse_completion(body(user(text("a"))), LIMITS).budget.form == FlopsShare(share=1.0)
    asked = parse_completion(body(user(text("a")), budget=0.9), LIMITS).budget
    assert asked.form == FlopsShare(share=0.9)
