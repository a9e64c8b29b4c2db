"""A-OKVQA: questions that need knowledge of the world, by choice or in one's own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from allrounder.evaluation.benchmarks.choices import MultipleChoice, asked
from allrounder.evaluation.grading import (
    GivenAnswer,
    LabelledQuestion,
    Problems,
    join,
    read_answers,
)
from allrounder.evaluation.local import LocalBenchmark, ScoreFiles, mean, resolve_label_file
from allrounder.evaluation.official_files import read_records, read_rows, unusable
from allrounder.evaluation.reading import LETTERS, ONE_WORD

_FILES = "aokvqa_v1p0_val.json and val2017/*.jpg (COCO 2017)"
_LABELS = ("aokvqa_v1p0_val.json", "*aokvqa*val*.json", "*aokvqa*.json")
_IMAGE_FOLDERS = ("val2017", "train2017", "test2017", "images", ".")


class AOkvqa(MultipleChoice):
    """Schwenk et al., A-OKVQA (2206.01718), multiple choice.

    Metric: `multiple_choice` is accuracy; `direct_answer`, where the answers hold any, the mean of
    min(1, matches / 3) over ten people's answers, compared as written, questions marked
    `difficult_direct_answer` left out.

    Files: `aokvqa_v1p0_val.json`, images in `val2017/` under COCO's names. Answers: the official
    {question_id: {"multiple_choice": choice, "direct_answer": text}}, or lines with question_id and
    a letter or a choice as text.
    """

    name = "aokvqa"
    files = _FILES
    label_files: ClassVar[tuple[str, ...]] = _LABELS
    image_folders: ClassVar[tuple[str, ...]] = _IMAGE_FOLDERS

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        return [
            _row(path, value, param=param)
            for value in read_rows(path, ("question_id", "question", "choices"), param=param)
        ]

    @classmethod
    def score(cls, files: ScoreFiles) -> dict[str, Any]:
        path = resolve_label_file(files.labels, _LABELS)
        official = _official(files.answers)
        if official is None:
            return super().score(files)
        problems = Problems()
        found: dict[str, Any] = {}
        chosen, spoken = (_setting(official, name) for name in ("multiple_choice", "direct_answer"))
        if chosen or not spoken:
            rows = cls.labelled(path, param="labels")
            found = cls.report(rows, join(rows, chosen, problems), problems)
        if spoken:
            direct = AOkvqaDirect.labelled(path, param="labels")
            kept = {row.id for row in direct}
            # Questions too hard for a direct answer may be answered, and are not graded.
            difficult = {row.id for row in cls.labelled(path, param="labels")} - kept
            given = [answer for answer in spoken if answer.id not in difficult]
            found |= AOkvqaDirect.report(direct, join(direct, given, problems), problems)
        return found

    @classmethod
    def given(cls, answers: Path) -> list[GivenAnswer]:
        return [
            GivenAnswer(place=answer.place, id=answer.id, text=answer.text)
            for answer in read_answers(answers)
        ]

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        return {"multiple_choice": mean(cls.grades(rows, texts))}


class AOkvqaDirect(LocalBenchmark):
    """A-OKVQA in one's own words; files and metric as `AOkvqa` says."""

    name = "aokvqa-direct"
    files = _FILES
    label_files: ClassVar[tuple[str, ...]] = _LABELS
    image_folders: ClassVar[tuple[str, ...]] = _IMAGE_FOLDERS

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        keys = ("question_id", "question", "direct_answers")
        rows = []
        for value in read_rows(path, keys, param=param):
            if value.get("difficult_direct_answer") is True:
                continue
            rows.append(
                LabelledQuestion(
                    id=str(value["question_id"]),
                    prompt=f"{value['question']}\n{ONE_WORD}",
                    labels=_people(path, value, param=param),
                    image=_image(value),
                )
            )
        return rows

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return min(1.0, row.labels.count(answer.strip()) / 3)

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        return {"direct_answer": mean(cls.grades(rows, texts))}


def _people(path: Path, value: dict[str, Any], *, param: str) -> tuple[str, ...]:
    answers = value["direct_answers"]
    if not isinstance(answers, list):
        raise unusable(path, f"{value['question_id']} has no list of answers", param=param)
    return tuple(str(answer) for answer in answers)


def _row(path: Path, value: dict[str, Any], *, param: str) -> LabelledQuestion:
    choices, place = value["choices"], value.get("correct_choice_idx")
    name = str(value["question_id"])
    if not isinstance(choices, list) or not isinstance(place, int):
        raise unusable(path, f"{name} has no choices and correct_choice_idx", param=param)
    if not 0 <= place < min(len(choices), len(LETTERS)):
        raise unusable(path, f"{name} has no choice {place}", param=param)
    texts = tuple(str(choice) for choice in choices)
    return LabelledQuestion(
        id=name,
        prompt=asked(str(value["question"]), texts),
        label=LETTERS[place],
        choices=texts,
        image=_image(value),
    )


def _image(value: dict[str, Any]) -> str:
    """COCO 2017 names: twelve digits."""
    number = value.get("image_id")
    return f"{number:012d}.jpg" if isinstance(number, int) else ""


def _official(answers: Path) -> dict[str, Any] | None:
    records = read_records(answers, param="answers")
    only = records[0].value if len(records) == 1 else None
    if isinstance(only, dict) and "question_id" not in only:
        return only
    return None


def _setting(official: dict[str, Any], setting: str) -> list[GivenAnswer]:
    return [
        GivenAnswer(place=f"entry {name!r}", id=name, text=text if isinstance(text, str) else None)
        for name, value in official.items()
        for text in ([value[setting]] if isinstance(value, dict) and setting in value else [])
    ]
