"""Questions about a scene with their accepted answers, and the scorer of a model's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from allrounder.demo.ask_attributes import ask_colour, ask_count, ask_exist, ask_shape, ask_size
from allrounder.demo.ask_descriptions import ask_describe
from allrounder.demo.ask_relations import ask_compare, ask_corner, ask_position, ask_where
from allrounder.demo.mentions import named_right
from allrounder.demo.scenes import Scene
from allrounder.demo.wording import NUMBER_WORDS, NounPhrase, Question

__all__ = ["TYPES", "NounPhrase", "Question", "ask_questions", "is_correct", "score_answer"]

ASKERS: dict[str, Callable[[Scene, Random], Question | None]] = {
    "exist": ask_exist,
    "count": ask_count,
    "colour": ask_colour,
    "shape": ask_shape,
    "size": ask_size,
    "position": ask_position,
    "compare": ask_compare,
    "corner": ask_corner,
    "where": ask_where,
    "describe": ask_describe,
}
TYPES = tuple(ASKERS)
TRIES = 3


def ask_questions(
    scene: Scene, rng: Random, *, per_type: int = 2, types: Iterable[str] = TYPES
) -> list[Question]:
    """Up to `per_type` different questions of each type; fewer where the scene allows none."""
    questions: dict[str, Question] = {}
    for name in types:
        asked = 0
        for _ in range(per_type * TRIES):
            question = ASKERS[name](scene, rng)
            if question is not None and question.text not in questions:
                questions[question.text] = question
                asked += 1
            if asked == per_type:
                break
    return list(questions.values())


def is_correct(answer: str, question: Question) -> bool:
    """Exact match up to case, outer whitespace, a final period, gray/grey and number words."""
    return _normal(answer) in {_normal(accepted) for accepted in question.answers}


def score_answer(answer: str, question: Question) -> float:
    """From 0 to 1: of a description the attributes named right, else 1 for an exact match."""
    if question.described:
        return named_right(answer, question.described)
    return float(is_correct(answer, question))


def _normal(answer: str) -> str:
    words = answer.strip().lower().removesuffix(".").replace("grey", "gray").split()
    return " ".join(
        str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in words
    )
