"""Bodies to core types, without HTTP: every wrong field is named, nothing is ignored."""

from __future__ import annotations

import math

import pytest

from allrounder.core import Priority
from allrounder.core.budget import Counts, FlopsShare, Quality
from allrounder.errors import AllrounderError
from allrounder_service.api.intake.api_request import ChatLimits, parse_chat
from tests.intake.pictures import data_url, red

LIMITS = ChatLimits(max_tokens_limit=100, max_image_bytes=3000, default_budget=0.75)
URL = data_url(red())


def body(**fields):
    return {"image": URL, "question": "What is this?", **fields}


def refusal(fields, files=()):
    with pytest.raises(AllrounderError) as caught:
        parse_chat(fields, LIMITS, files=files)
    return caught.value


def test_the_smallest_body_takes_the_operators_defaults():
    asked = parse_chat(body(), LIMITS)
    assert asked.budget.form == FlopsShare(share=0.75)
    assert (asked.stream, asked.explain, asked.priority) == (False, False, Priority.INTERACTIVE)
    assert asked.sampling.temperature == 0
    assert asked.images[0].read() == red()


def test_a_full_body_reaches_the_engine_unchanged():
    asked = parse_chat(
        body(
            question=" What\nis «this»? ",
            budget={"flops": 0.5, "strategy": "par", "options": {"k": 2}, "min_tokens": 4},
            max_tokens=7,
            temperature=1,
            top_p=0.5,
            seed=-3,
            stop=["a", "b"],
            explain=True,
            stream=True,
            deadline_ms=1500,
            priority="batch",
        ),
        LIMITS,
    )
    request = asked.to_chat_request((), id="x", arrival=10.0, tenant="t")
    assert request.question == " What\nis «this»? "
    assert request.deadline == 11.5
    assert request.sampling.stop == ("a", "b")
    assert (request.budget.strategy, request.budget.min_tokens) == ("par", 4)
    assert dict(request.budget.options) == {"k": 2}
    assert request.priority is Priority.BATCH


def test_null_is_the_same_as_left_out():
    assert parse_chat(body(images=None, budget=None, stop=None, seed=None), LIMITS).sampling == (
        parse_chat(body(), LIMITS).sampling
    )


def test_one_stop_string_needs_no_list():
    assert parse_chat(body(stop="END"), LIMITS).sampling.stop == ("END",)


@pytest.mark.parametrize(
    ("budget", "form"),
    [
        (1, FlopsShare(share=1.0)),
        (0.25, FlopsShare(share=0.25)),
        ({"flops": 1}, FlopsShare(share=1.0)),
        ({"tokens": 144, "layers": 28}, Counts(tokens=144, layers=28)),
        ({"tokens": 144}, Counts(tokens=144)),
        ({"layers": 28, "tokens": None}, Counts(layers=28)),
        ({"quality": 0.98}, Quality(loyalty=0.98)),
        ({"quality": 1, "strategy": "par-token", "min_tokens": 9}, Quality(loyalty=1.0)),
    ],
)
def test_each_budget_form_is_understood_and_echoed(budget, form):
    parsed = parse_chat(body(budget=budget), LIMITS).budget
    assert parsed.form == form
    expected = budget
    if isinstance(budget, dict):
        expected = {key: value for key, value in budget.items() if value is not None}
    assert parsed.requested == expected


BAD_BUDGETS = [
    (0, "budget"),
    (-0.5, "budget"),
    (1.0001, "budget"),
    (2, "budget"),
    (10**400, "budget"),
    (math.nan, "budget"),
    (math.inf, "budget"),
    (True, "budget"),
    ("auto", "budget"),
    ("0.5", "budget"),
    ([0.5], "budget"),
    ({}, "budget"),
    ({"strategy": "par"}, "budget"),
    ({"flops": 0.5, "tokens": 3}, "budget"),
    ({"flops": 0.5, "latency_ms": 3}, "budget"),
    ({"latency_ms": 3, "quality": 0.9}, "budget"),
    ({"latency_ms": 200}, "budget.latency_ms"),
    ({"quality": 0}, "budget.quality"),
    ({"quality": -0.1}, "budget.quality"),
    ({"quality": 1.001}, "budget.quality"),
    ({"quality": math.nan}, "budget.quality"),
    ({"quality": True}, "budget.quality"),
    ({"quality": "0.98"}, "budget.quality"),
    ({"quality": 0.9, "flops": 0.5}, "budget"),
    ({"quality": 0.9, "layers": 3}, "budget"),
    ({"quality": 0.9, "colour": 1}, "budget.colour"),
    ({"quality": 0.9, "min_tokens": 0}, "budget.min_tokens"),
    ({"flops": 0}, "budget.flops"),
    ({"flops": math.nan}, "budget.flops"),
    ({"flops": True}, "budget.flops"),
    ({"flops": "0.5"}, "budget.flops"),
    ({"tokens": 0}, "budget.tokens"),
    ({"tokens": -1}, "budget.tokens"),
    ({"tokens": 1.5}, "budget.tokens"),
    ({"tokens": True}, "budget.tokens"),
    ({"tokens": 10**400}, "budget.tokens"),
    ({"layers": 0}, "budget.layers"),
    ({"layers": math.nan}, "budget.layers"),
    ({"flops": 0.5, "colour": 1}, "budget.colour"),
    ({"colour": 1}, "budget.colour"),
    ({"flops": 0.5, "strategy": 3}, "budget.strategy"),
    ({"flops": 0.5, "strategy": ""}, "budget.strategy"),
    ({"flops": 0.5, "min_tokens": 0}, "budget.min_tokens"),
    ({"flops": 0.5, "options": []}, "budget.options"),
    ({"flops": 0.5, "options": {"k": math.inf}}, "budget.options.k"),
    ({"flops": 0.5, "options": {"k": 10**400}}, "budget.options.k"),
    ({"flops": 0.5, "options": {"k": {"deep": 1}}}, "budget.options.k"),
    ({"flops": 0.5, "options": {"k": "\ud800"}}, "budget.options.k"),
]


@pytest.mark.parametrize(("budget", "param"), BAD_BUDGETS)
def test_a_wrong_budget_is_a_422_that_names_its_part(budget, param):
    error = refusal(body(budget=budget))
    assert (error.status, error.param) == (422, param)


@pytest.mark.parametrize("budget", ["auto", {"latency_ms": 200}])
def test_a_form_that_does_not_exist_yet_says_so_and_names_those_that_do(budget):
    message = refusal(body(budget=budget)).message
    assert "does not exist yet" in message
    assert "flops" in message


BAD_FIELDS = [
    ({"question": ""}, "question"),
    ({"question": "x" * 8193}, "question"),
    ({"question": 3}, "question"),
    ({"question": None}, "question"),
    ({"question": "\ud800"}, "question"),
    ({"question": "a\0b"}, "question"),
    ({"colour": "red"}, "colour"),
    ({"colour": None}, "colour"),
    ({"Question": "x"}, "Question"),
    ({"image": None}, "image"),
    ({"image": 3}, "image"),
    ({"images": [URL]}, "images"),
    ({"image": None, "images": []}, "images"),
    ({"image": None, "images": [URL] * 17}, "images"),
    ({"image": None, "images": [URL, 3]}, "images.1"),
    ({"image": None, "images": URL}, "images"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 101}, "max_tokens"),
    ({"max_tokens": 1.0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": math.nan}, "top_p"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"stop": [""]}, "stop.0"),
    ({"stop": ""}, "stop.0"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ["a" * 65]}, "stop.0"),
    ({"stop": 3}, "stop"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"explain": 0}, "explain"),
    ({"deadline_ms": 0}, "deadline_ms"),
    ({"deadline_ms": 1.5}, "deadline_ms"),
    ({"deadline_ms": 10**400}, "deadline_ms"),
    ({"priority": "urgent"}, "priority"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS)
def test_a_wrong_field_is_a_422_that_names_it(fields, param):
    error = refusal(body(**fields))
    assert (error.status, error.code, error.param) == (422, "invalid_field", param)


def test_a_refusal_never_echoes_what_was_sent():
    assert "hunter2" not in refusal(body(max_tokens="hunter2")).message
    assert "hunter2" not in refusal(body(priority="hunter2")).message


BAD_IMAGES = [
    ("https://example.com/cat.png", "remote_images_disabled"),
    ("HTTPS://example.com/cat.png", "remote_images_disabled"),
    ("http://169.254.169.254/", "image_url_not_allowed"),
    ("http://[::ffff:127.0.0.1]/", "image_url_not_allowed"),
    ("file:///etc/passwd", "image_url_not_allowed"),
    ("//example.com/cat.png", "image_url_not_allowed"),
    ("gopher://example.com/", "image_url_not_allowed"),
    ("/etc/passwd", "image_url_not_allowed"),
    ("", "image_url_not_allowed"),
    (" data:image/png;base64,AAAA", "image_url_not_allowed"),
    ("data:image/png;base64", "invalid_base64"),
    ("data:image/png,AAAA", "invalid_base64"),
    ("data:image/png;base64,A" + "A" * 4000, "image_too_large"),
]


@pytest.mark.parametrize(("url", "code"), BAD_IMAGES)
def test_a_wrong_image_url_is_refused_by_its_kind(url, code):
    error = refusal(body(image=url))
    assert (error.status, error.code, error.param) == (400, code, "image")
    assert refusal(body(image=None, images=[URL, url])).param == "images.1"


@pytest.mark.parametrize("payload", ["!!!!", "AAA", "AA==AA", "AAAA\n", "Ää==", "A-_A", "="])
def test_base64_is_taken_at_its_word(payload):
    asked = parse_chat(body(image=f"data:image/png;base64,{payload}"), LIMITS)
    with pytest.raises(AllrounderError) as caught:
        asked.images[0].read()
    assert (caught.value.code, caught.value.param) == ("invalid_base64", "image")


def test_the_declared_media_type_is_ignored():
    asked = parse_chat(body(image=data_url(red(), "text/plain;charset=utf-8")), LIMITS)
    assert asked.images[0].read() == red()


def test_files_stand_for_images_and_obey_the_same_limits():
    fields = {"question": "x"}
    assert len(parse_chat(fields, LIMITS, files=[red(), red()]).images) == 2
    assert refusal(fields, files=[b"x" * 3001]).code == "image_too_large"
    assert refusal(fields, files=[red()] * 17).param == "image"
    assert refusal(body(), files=[red()]).param == "images"
