"""LLaVA-Bench-in-the-Wild: open questions about 24 images, answers compared by a judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from allrounder.evaluation.benchmark import Item
from allrounder.evaluation.grading import (
    GivenAnswer,
    LabelledQuestion,
    Problems,
    join,
    read_answers,
)
from allrounder.evaluation.judges import FULL_SCORE, Judge, Verdict, WordOverlap
from allrounder.evaluation.local import LocalBenchmark, ScoreFiles, mean, resolve_label_file
from allrounder.evaluation.official_files import read_records, read_rows

_PREFIX = "llava_bench_"


class LlavaBenchInTheWild(LocalBenchmark):
    """Liu et al., Visual Instruction Tuning (2304.08485).

    Protocol: GPT-4, given captions, scores GPT-4's reference answer and the model's from 1 to 10.
    `relative` = 100 x mean model score / mean reference score, over all 60 questions and by
    category (conv, detail, complex). A missing or malformed review leaves the model 0 against the
    mean reference score of its category.

    Files: `questions.jsonl`, `answers_gpt4.jsonl`, `images/`. Scored are review lines
    (question_id, category, tuple = [reference, model], content). To be asked without GPT-4 a
    `Judge` is handed in; the default, shared words, is a stand-in and gives no `relative`.
    """

    name = "llava-bench-in-the-wild"
    files = "questions.jsonl, answers_gpt4.jsonl and images/"
    label_files: ClassVar[tuple[str, ...]] = ("questions.jsonl", "*questions*.jsonl")

    def __init__(self, data: Path | None = None, *, judge: Judge | None = None) -> None:
        super().__init__(data)
        self.judge: Judge = judge or WordOverlap()

    def rows(self) -> list[LabelledQuestion]:
        path = self.label_file().with_name("answers_gpt4.jsonl")
        known = {
            str(value["question_id"]): str(value["text"])
            for value in read_rows(path, ("question_id", "text"), param="data")
        }
        return [replace(row, label=known.get(row.id, "")) for row in super().rows()]

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        return [
            LabelledQuestion(
                id=str(value["question_id"]),
                prompt=str(value["text"]),
                type=str(value.get("category", "")),
                image=str(value.get("image", "")),
            )
            for value in read_rows(path, ("question_id", "text"), param=param)
        ]

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return _share(WordOverlap()(row.prompt, row.label, answer))

    def items(self, *, limit: int, seed: int) -> Sequence[Item]:
        items = super().items(limit=limit, seed=seed)
        for item, row in zip(items, self.rows_of(items), strict=True):
            object.__setattr__(item, "grade", partial(self._judged, row))
        return items

    def summary(self, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
        if not self.judge.official:
            return {}
        rows = self.rows_of(items)
        verdicts = [
            self.judge(row.prompt, row.label, text) for row, text in zip(rows, answers, strict=True)
        ]
        return _relative(rows, list(verdicts))

    @classmethod
    def score(cls, files: ScoreFiles) -> dict[str, Any]:
        problems = Problems()
        reviews = _reviews(files.answers)
        labels = files.labels or files.questions
        if labels is None:
            rows = list(
                {
                    given.id: LabelledQuestion(id=given.id, type=given.type) for given, _ in reviews
                }.values()
            )
        else:
            rows = cls.labelled(resolve_label_file(labels, cls.label_files), param="labels")
        given = [replace(answer, type="") for answer, _ in reviews]
        places = {answer.place: verdict for answer, verdict in reviews}
        found = join(rows, given, problems)
        verdicts = [None if place is None else places[place] for place in found]
        return {**_relative(rows, verdicts), "n": len(rows), "problems": problems.report()}

    def _judged(self, row: LabelledQuestion, answer: str) -> float:
        return _share(self.judge(row.prompt, row.label, answer)) if answer.strip() else 0.0


def _share(verdict: Verdict) -> float:
    return min(1.0, max(0.0, verdict.answer / FULL_SCORE))


def _relative(
    rows: Sequence[LabelledQuestion], verdicts: Sequence[Verdict | None]
) -> dict[str, Any]:
    pairs = list(zip([row.type for row in rows], verdicts, strict=True))
    filled = []
    for kind, verdict in pairs:
        known = [v.reference for k, v in pairs if k == kind and v is not None]
        filled.append((kind, verdict or Verdict(reference=mean(known), answer=0.0)))
    kinds = sorted({kind for kind, _ in filled if kind})
    return {
        "relative": _ratio([verdict for _, verdict in filled])["relative"],
        "categories": {kind: _ratio([v for k, v in filled if k == kind]) for kind in kinds},
    }


def _ratio(verdicts: Sequence[Verdict]) -> dict[str, float]:
    reference = mean([verdict.reference for verdict in verdicts])
    answer = mean([verdict.answer for verdict in verdicts])
    return {
        "relative": 100 * answer / reference if reference else 0.0,
        "reference": reference,
        "model": answer,
    }


def _reviews(path: Path) -> list[tuple[GivenAnswer, Verdict | None]]:
    """Every review with its verdict; the text of a sound one is its place, to be joined by."""
    reviews = []
    values = [record.value for record in read_records(path, param="answers")]
    for answer, value in zip(read_answers(path), values, strict=False):
        verdict = _verdict(value)
        kind = answer.type.removeprefix(_PREFIX)
        text = None if verdict is None else answer.place
        reviews.append((replace(answer, type=kind, text=text, prompt=""), verdict))
    return reviews


def _verdict(value: Any) -> Verdict | None:
    """From `tuple`, or where there is none from the first line of `content`."""
    if not isinstance(value, dict):
        return None
    scores = value.get("tuple", value.get("score"))
    if scores is None and isinstance(value.get("content"), str):
        scores = value["content"].partition("\n")[0].replace(",", " ").split()
    try:
        reference, answer = (float(score) for score in scores or ())
    except (TypeError, ValueError):
        return None
    sound = all(math.isfinite(score) and 0 <= score <= 10 for score in (reference, answer))
    return Verdict(reference=reference, answer=answer) if sound and reference else None
