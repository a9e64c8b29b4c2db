"""Questions are worded in many ways, answered rightly, and scored fairly."""

from __future__ import annotations

import re
from random import Random

import pytest

from allrounder.demo.questions import TYPES, Question, ask_questions, is_correct
from allrounder.demo.scenes import (
    COLOURS,
    SHAPES,
    Scene,
    SceneObject,
    SceneSplit,
    draw_scene,
    scene_rng,
)

SCENES = [draw_scene(scene_rng(SceneSplit.TEST, 2, index)) for index in range(120)]
ASKED = [(scene, ask_questions(scene, Random(i))) for i, scene in enumerate(SCENES)]
WORDING = set(
    re.findall(
        r"\w+",
        """what which how many where is are there can see tell size big small above below over left
        right lower higher count describe nearest corner more fewer larger bigger contain do""",
    )
)
SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}


def questions_of(*types: str) -> list[tuple[Scene, Question]]:
    return [(s, q) for s, asked in ASKED for q in asked if q.type in types]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace("grey", "gray"))


def mentioned(scene: Scene, words: list[str]) -> list[SceneObject]:
    """Objects that fit every attribute word, found without the code under test."""
    singular = {word: shape for shape in SHAPES for word in (shape, shape + "s", shape + "es")}
    colours = {word for word in words if word in COLOURS}
    shapes = {singular[word] for word in words if word in singular}
    sizes = {SIZES[word] for word in words if word in SIZES}
    return [
        item
        for item in scene.objects
        if colours <= {item.colour} and shapes <= {item.shape} and sizes <= {item.size}
    ]


def make_question(*answers: str) -> Question:
    return Question(type="count", text="?", answers=answers, objects=(), phrases=())


def test_every_type_is_asked_in_several_wordings() -> None:
    for name in TYPES:
        wordings = {
            frozenset(WORDING.intersection(words_of(q.text))) for _, q in questions_of(name)
        }
        assert len(wordings) >= 3, name


def test_existence_is_answered_yes_exactly_when_such_an_object_is_there() -> None:
    asked = questions_of("exist")
    for scene, question in asked:
        expected = "yes" if mentioned(scene, words_of(question.text)) else "no"
        assert question.answers == (expected,), question.text
    assert 0.4 < sum(q.answers == ("yes",) for _, q in asked) / len(asked) < 0.6


def test_counts_are_the_number_of_such_objects() -> None:
    for scene, question in questions_of("count"):
        expected = len(mentioned(scene, words_of(question.text)))
        assert question.answers[0] == str(expected), question.text


def test_colour_and_shape_answers_belong_to_the_one_object_meant() -> None:
    for scene, question in questions_of("colour", "shape"):
        (item,) = mentioned(scene, words_of(question.text))
        expected = item.colour if question.type == "colour" else item.shape
        assert question.answers[0] == expected, question.text


def test_where_names_the_third_of_the_image() -> None:
    for scene, question in questions_of("where"):
        item = scene.objects[question.objects[0]]
        words = question.answers[0].split()
        for low, high, value in (("left", "right", item.x), ("top", "bottom", item.y)):
            assert (low in words) == (value < 1 / 3)
            assert (high in words) == (value > 2 / 3)


def test_descriptions_have_five_to_twelve_words_and_other_answers_at_most_four() -> None:
    for _, asked in ASKED:
        for question in asked:
            length = len(question.answers[0].split())
            assert (5 <= length <= 12) if question.type == "describe" else length <= 4


def test_noun_phrases_point_at_words_of_the_question_and_objects_of_the_scene() -> None:
    for scene, asked in ASKED:
        for question in asked:
            assert all(0 <= index < len(scene.objects) for index in question.objects)
            for phrase in question.phrases:
                assert re.fullmatch(r"[a-z]+", question.text[phrase.start : phrase.end].lower())


@pytest.mark.parametrize("answer", ["3", " three.", "Three", "3."])
def test_numbers_are_accepted_as_words_and_digits(answer: str) -> None:
    assert is_correct(answer, make_question("3"))


@pytest.mark.parametrize(("answer", "right"), [("Grey", True), ("gray.", True), ("blue", False)])
def test_both_spellings_of_gray_are_accepted(answer: str, right: bool) -> None:
    assert is_correct(answer, make_question("gray", "grey")) is right
