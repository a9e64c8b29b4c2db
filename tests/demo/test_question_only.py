"""What can be answered without the image is learned from training scenes and graded alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from allrounder.demo import held_out
from allrounder.demo.held_out import draw_exams, draw_questions
from allrounder.demo.questions import TYPES, Question
from allrounder.demo.scene_pool import pool_scene
from allrounder.demo.scenes import Scene, SceneSplit
from allrounder.demo.wording import Mention
from allrounder.measure.statistics import Estimate
from research.demo_model.evaluate import ScoreRow, format_rows, rows_of
from research.demo_model.question_only import MIN_SUPPORT, QuestionOnly, learn_question_only


def ask(text: str, *answers: str, type_name: str = "colour") -> Question:
    return Question(type=type_name, text=text, answers=answers, objects=(), phrases=())


def asked_often(text: str, answers: Sequence[str], **fields: str) -> list[Question]:
    return [ask(text, answer, **fields) for answer in answers] * MIN_SUPPORT


@pytest.fixture(scope="module")
def blind() -> QuestionOnly:
    return learn_question_only(num_scenes=400)


def test_the_most_specific_pattern_with_support_decides() -> None:
    blind = QuestionOnly(
        [
            *asked_often("What colour is the circle?", ["red", "red", "blue"]),
            *asked_often("What color is the grey star?", ["white", "white", "white"]),
            *asked_often("Which colour is it?", ["cyan", "cyan", "cyan", "cyan", "cyan"]),
        ]
    )
    assert blind.answer(ask("what color is the circle")) == "red"
    assert blind.answer(ask("What colour is the gray star?")) == "white"
    assert blind.answer(ask("What colour is the green star?")) == "white"
    assert blind.answer(ask("What colour is the cross?")) == "red"
    assert blind.answer(ask("What hue has this?")) == "cyan"


def test_an_answer_may_repeat_the_question() -> None:
    texts = [("circles", "stars"), ("stars", "crosses"), ("red things", "blue things")]
    blind = QuestionOnly(
        question
        for first, second in texts
        for question in asked_often(f"Are there more {first} or {second}?", [second])
    )
    unseen = ask("Are there more small squares or gray objects?")
    assert blind.answer(unseen) == "gray objects"


def test_a_rare_text_is_no_pattern() -> None:
    rare = [ask("What colour is the star?", "blue")] * (MIN_SUPPORT - 1)
    common = asked_often("What colour is the cross?", ["red"] * 3)
    assert QuestionOnly([*rare, *common]).answer(ask("What colour is the star?")) == "red"


def test_a_description_is_chosen_by_the_attributes_it_gets_right() -> None:
    questions = [
        Question(
            type="describe",
            text="What do you see?",
            answers=(f"a small {colour} circle",),
            objects=(),
            phrases=(),
            described=(Mention(size="small", colour=colour, shape="circle"),),
        )
        for colour in ("red", "blue", "green", "red")
    ]
    blind = QuestionOnly(questions * MIN_SUPPORT)
    assert blind.answer(questions[1]) == "a small red circle"
    (overall, *_) = rows_of(questions, range(4), [blind.answer(q) for q in questions], blind)
    assert overall.accuracy.value == overall.question_only == pytest.approx((1 + 1 + 4 / 3) / 4)


def test_it_learns_from_the_training_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SceneSplit] = []

    def watched(split: SceneSplit, seed: int, index: int) -> tuple[Scene, np.random.Generator]:
        seen.append(split)
        return pool_scene(split, seed, index)

    monkeypatch.setattr(held_out, "pool_scene", watched)
    learn_question_only(num_scenes=3)
    assert seen == [SceneSplit.TRAIN] * 3


def test_it_answers_every_type_and_beats_no_fair_coin_by_far(blind: QuestionOnly) -> None:
    exams = draw_exams(40, seed=5)
    questions = [question for exam in exams for question in exam.questions]
    images = [idx for idx, exam in enumerate(exams) for _ in exam.questions]
    rows = rows_of(questions, images, [blind.answer(q) for q in questions], blind)
    assert [row.name for row in rows] == ["overall", *TYPES, "describe (exact)"]
    of_type = {row.name: row.question_only for row in rows}
    assert 0.3 < of_type["exist"] < 0.75
    assert 0 < of_type["describe (exact)"] + 0.01 < of_type["describe"] < 0.5
    assert all(row.margin == 0 for row in rows)


def test_a_constant_answerer_gets_exactly_its_share(blind: QuestionOnly) -> None:
    questions = [ask("Is it?", answer, type_name="exist") for answer in ("yes", "no", "yes", "yes")]
    rows = rows_of(questions, range(4), ["yes"] * 4, blind)
    assert [row.accuracy.value for row in rows] == [0.75, 0.75]


def test_exams_by_number_of_questions_begin_alike() -> None:
    few, many = draw_questions(7, seed=2), draw_questions(19, seed=2)
    asked = [[q.text for exam in exams for q in exam.questions] for exams in (few, many)]
    assert [len(texts) for texts in asked] == [7, 19]
    assert asked[0] == asked[1][:7]
    assert (few[0].image == draw_exams(1, seed=2)[0].image).all()


@pytest.mark.parametrize(
    ("accuracy", "question_only", "near"),
    [(0.9, 0.5, False), (0.7, 0.5, True), (0.9, 0.8, False), (0.75, 0.5, False)],
)
def test_a_type_near_its_baseline_is_named_where_there_is_room(
    accuracy: float, question_only: float, near: bool
) -> None:
    found = Estimate(value=accuracy, stderr=0.01, n=9)
    row = ScoreRow(name="count", accuracy=found, question_only=question_only)
    table = format_rows([row])
    assert table.endswith("all but count" if near else "every type")
    assert ("(!)" in table) is near
