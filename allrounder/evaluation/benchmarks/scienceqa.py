"""ScienceQA: school questions of multiple choice, half of them with an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from allrounder.evaluation.benchmarks.choices import MultipleChoice, asked
from allrounder.evaluation.grading import GivenAnswer, LabelledQuestion, read_answers
from allrounder.evaluation.local import mean
from allrounder.evaluation.official_files import read_json, read_object, read_rows, unusable
from allrounder.evaluation.reading import LETTERS, ONE_LETTER

_CHOICE = re.compile(r"^([A-J])\. (.*)$", re.MULTILINE)


class ScienceQA(MultipleChoice):
    """Lu et al., Learn to Explain (2209.09513), in LLaVA's form.

    Metric: `all` is accuracy over the split test of `pid_splits.json`, `image` over its questions
    with an image (the published SQA-IMG); only these are asked of a model.

    Files: `problems.json` with `pid_splits.json`, or LLaVA's `llava_test_CQM-A.json`; images in
    `images/test/<id>/image.png`. Answers: LLaVA's lines (question_id, text), or its result file
    {"results": {id: index}, "outputs": {id: text}}, whose index is the answer.
    """

    name = "scienceqa"
    files = "problems.json with pid_splits.json, or llava_test_CQM-A.json, and images/test/<id>/"
    label_files: ClassVar[tuple[str, ...]] = ("problems.json", "*CQM-A*.json")
    image_folders: ClassVar[tuple[str, ...]] = ("images/test", "images", "test", ".")

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        found = read_json(path, param=param)
        if isinstance(found, list):
            return [_from_llava(path, value, param=param) for value in _objects(path, param=param)]
        splits = path.with_name("pid_splits.json")
        ids = list(found) if isinstance(found, dict) else []
        if splits.is_file():
            ids = read_object(splits, param=param).get("test", [])
        if not ids:
            raise unusable(path, "holds no problems of the split test", param=param)
        return [_from_problem(path, str(pid), found, param=param) for pid in ids]

    @classmethod
    def given(cls, answers: Path) -> list[GivenAnswer]:
        given = read_answers(answers)
        if {"results"} & {answer.id for answer in given}:
            results = read_object(answers, param="answers")["results"]
            if not isinstance(results, dict):
                raise unusable(answers, "its results are not {id: index}", param="answers")
            given = [
                GivenAnswer(place=f"entry {pid!r}", id=pid, text=_letter(index))
                for pid, index in results.items()
            ]
        # The prompts of lines hold choices and context: only the id joins.
        return [GivenAnswer(place=answer.place, id=answer.id, text=answer.text) for answer in given]

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        grades = cls.grades(rows, texts)
        with_image = [grade for row, grade in zip(rows, grades, strict=True) if row.image]
        return {"all": mean(grades), "image": mean(with_image)}


def _letter(index: Any) -> str | None:
    """-1 stands for an answer that could not be read."""
    if isinstance(index, bool) or not isinstance(index, int):
        return None
    return LETTERS[index] if 0 <= index < len(LETTERS) else "-"


def _objects(path: Path, *, param: str) -> list[dict[str, Any]]:
    return read_rows(path, ("id", "conversations"), param=param)


def _from_llava(path: Path, value: dict[str, Any], *, param: str) -> LabelledQuestion:
    pid = str(value["id"])
    try:
        question, label = (str(turn["value"]) for turn in value["conversations"][:2])
    except (TypeError, KeyError, ValueError):
        raise unusable(path, f"{pid} has no question and answer", param=param) from None
    question = question.replace("<image>", "").strip()
    choices = tuple(text for _, text in _CHOICE.findall(question))
    letter = label.strip().partition(".")[0]
    if len(letter) != 1 or letter not in LETTERS[: len(choices)]:
        raise unusable(path, f"{pid} is labelled {label[:20]!r}, none of its choices", param=param)
    return LabelledQuestion(
        id=pid,
        prompt=f"{question}\n{ONE_LETTER}",
        type="image" if value.get("image") else "text",
        label=letter,
        choices=choices,
        image=str(value.get("image") or ""),
    )


def _from_problem(
    path: Path, pid: str, problems: dict[str, Any], *, param: str
) -> LabelledQuestion:
    problem = problems.get(pid)
    if not isinstance(problem, dict):
        raise unusable(path, f"has no problem {pid}", param=param)
    choices = problem.get("choices")
    answer = problem.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int):
        raise unusable(path, f"problem {pid} has no choices and answer", param=param)
    if not 0 <= answer < len(choices):
        raise unusable(path, f"problem {pid} has no choice {answer}", param=param)
    hint = str(problem.get("hint") or "")
    question = str(problem.get("question", ""))
    image = problem.get("image")
    texts = tuple(str(choice) for choice in choices)
    return LabelledQuestion(
        id=pid,
        prompt=asked(f"Context: {hint}\n{question}" if hint else question, texts),
        type="image" if image else "text",
        label=LETTERS[answer],
        choices=texts,
        image=f"{pid}/{image}" if image else "",
    )
