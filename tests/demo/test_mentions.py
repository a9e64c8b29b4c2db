"""A description is worth the attributes that it names right, and costs those it makes up."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.demo.ask_descriptions import IMAGE, NEIGHBOUR, OBJECT, ask_describe
from allrounder.demo.facts import place_answers, place_name, place_phrase
from allrounder.demo.mentions import named_right, read_mentions
from allrounder.demo.questions import Question, ask_questions, is_correct, score_answer
from allrounder.demo.scenes import COLOURS, SHAPES, SIZES, SceneSplit, draw_scene, scene_rng
from allrounder.demo.wording import Mention, with_article

RED = Mention(size="small", colour="red", shape="circle")
BLUE = Mention(size="large", colour="blue", shape="square")
CORNER = Mention(size="small", colour="red", shape="circle", place="top left")
ABOVE = Mention(size="small", colour="gray", shape="star", relation="above")
PAIR = (Mention(size="small", colour="red", shape="circle", relation="left"), BLUE)
MANY = (Mention(number="several"), Mention(colour="red", shape="circle", role="largest"))
# Of the small red circle, the question has told all but the place.
TOLD = Mention(
    size="small",
    colour="red",
    shape="circle",
    place="top left",
    given=frozenset(("size", "colour", "shape")),
)
SEVERAL = "several shapes, the largest is a red circle"
VOCABULARY = (
    *COLOURS, *SHAPES, *SIZES, "grey", "big", "little", "a", "the", "its", "it", "to", "of", "and",
    "left", "right", "top", "bottom", "center", "above", "below", "several", "largest", "shapes",
    "is", ",", "image",
)  # fmt: skip


def f1(right: int, asked: int, named: int) -> float:
    return 2 * right / (asked + named)


@pytest.mark.parametrize(
    ("described", "answer", "expected"),
    [
        ((CORNER,), "a small red circle in the top left corner", 1),
        ((CORNER,), "A little red circle, upper left.", 1),
        ((CORNER,), "a small red circle", f1(3, 4, 3)),
        ((CORNER,), "a small green circle in the top left corner", f1(3, 4, 4)),
        ((CORNER,), "a small red circle on the left", f1(3, 4, 4)),
        ((CORNER,), "a small red circle to its left", f1(3, 4, 4)),
        ((CORNER,), "a small red circle in the top left corner, a star", f1(4, 4, 5)),
        ((CORNER,), "a red green blue circle", f1(1, 4, 4)),
        ((CORNER,), "top", 0),
        ((CORNER,), "", 0),
        ((CORNER,), "I do not know.", 0),
        ((ABOVE,), "a small grey star above it", 1),
        ((ABOVE,), "a small gray star over it", 1),
        ((ABOVE,), "a small gray star below it", f1(3, 4, 4)),
        ((ABOVE,), "a small gray star above it below it", f1(3, 4, 4)),
        (PAIR, "a small red circle to the left of a large blue square", 1),
        (PAIR, "a large blue square to the right of a small red circle", 1),
        (PAIR, "a large blue square to the left of a small red circle", f1(6, 7, 7)),
        (PAIR, "a small red circle above a large blue square", f1(6, 7, 7)),
        (PAIR, "a small red circle and a large blue square", f1(6, 7, 6)),
        (PAIR, "a large red circle to the left of a small blue square", f1(5, 7, 7)),
        (PAIR, "a small red square to the left of a large blue circle", f1(5, 7, 7)),
        ((RED, BLUE), "a large blue square, a small red circle", 1),
        ((RED, BLUE, RED), "a small red circle, a large blue square", f1(6, 9, 6)),
        (MANY, SEVERAL, 1),
        (MANY, "many shapes, the biggest shape is a red circle", 1),
        (MANY, "several shapes, the largest is a green circle", f1(2, 3, 3)),
        (MANY, "several shapes, a red circle", f1(1, 3, 3)),
        (MANY, "several shapes", f1(1, 3, 1)),
        ((TOLD,), "a small red circle in the top left corner", 1),
        ((TOLD,), "top left", 1),
        ((TOLD,), "a small red circle", 0),
        ((TOLD,), "a large green square in the top left corner", f1(1, 1, 4)),
    ],
)
def test_a_description_is_worth_the_attributes_named_right(
    described: tuple[Mention, ...], answer: str, expected: float
) -> None:
    assert named_right(answer, described) == pytest.approx(expected)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_every_wording_of_a_place_is_read_as_that_place(row: int, column: int) -> None:
    place = row, column
    for words in (place_phrase(place), *place_answers(place)):
        assert read_mentions(f"a red circle {words}")[0].place == place_name(place), words


@given(
    size=st.sampled_from(SIZES),
    colour=st.sampled_from(COLOURS),
    shape=st.sampled_from(SHAPES),
    place=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_an_object_is_read_back_from_its_words(
    size: str, colour: str, shape: str, place: tuple[int, int]
) -> None:
    words = f"{with_article(f'{size} {colour} {shape}')} {place_phrase(place)}"
    expected = Mention(size=size, colour=colour, shape=shape, place=place_name(place))
    assert read_mentions(words) == [expected]


@given(words=st.lists(st.sampled_from(VOCABULARY), max_size=30), idx=st.integers(0, 200))
def test_no_text_is_worth_less_than_nothing_or_more_than_all(words: list[str], idx: int) -> None:
    described = ((CORNER,), (ABOVE,), PAIR, MANY, (TOLD,))[idx % 5]
    assert 0 <= named_right(" ".join(words), described) <= 1


@given(text=st.text())
def test_any_text_can_be_graded(text: str) -> None:
    assert 0 <= named_right(text, PAIR) <= 1


@given(index=st.integers(0, 5000))
def test_every_accepted_answer_is_worth_all_of_its_question(index: int) -> None:
    scene = draw_scene(scene_rng(SceneSplit.TEST, 11, index))
    for question in ask_questions(scene, Random(index)):
        assert bool(question.described) == (question.type == "describe")
        for answer in question.answers:
            assert score_answer(answer, question) == 1, answer


@given(index=st.integers(0, 5000), other=st.integers(0, 5000))
def test_what_matches_exactly_is_worth_all(index: int, other: int) -> None:
    mine, theirs = (
        ask_questions(draw_scene(scene_rng(SceneSplit.TEST, 11, i)), Random(i))
        for i in (index, other)
    )
    for question in mine:
        for answer in (answer for q in theirs for answer in q.answers):
            if is_correct(answer, question):
                assert score_answer(answer, question) == 1
            elif question.type != "describe":
                assert score_answer(answer, question) == 0


def test_every_wording_of_a_description_asks_for_something() -> None:
    questions = [
        question
        for index in range(400)
        for question in [
            ask_describe(draw_scene(scene_rng(SceneSplit.TEST, 12, index)), Random(index))
        ]
        if question is not None
    ]
    stems = [template.partition("{")[0] for template in (*OBJECT, *NEIGHBOUR, *IMAGE)]
    for stem in stems:
        assert any(question.text.lower().startswith(stem) for question in questions), stem
    for question in questions:
        assert _worth_of_echo(question) < 1, question.text


def _worth_of_echo(question: Question) -> float:
    return score_answer(question.text, question)
