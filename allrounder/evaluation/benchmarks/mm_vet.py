"""MM-Vet: open questions that need several capabilities at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from allrounder.errors import InvalidField
from allrounder.evaluation.benchmark import Item
from allrounder.evaluation.grading import LabelledQuestion, Problems
from allrounder.evaluation.judges import parts_named
from allrounder.evaluation.local import LocalBenchmark, ScoreFiles, mean, resolve_label_file
from allrounder.evaluation.official_files import read_json, read_object, read_rows, unusable


class MmVet(LocalBenchmark):
    """Yu et al., MM-Vet (2308.02490).

    Protocol: GPT-4 grades every answer from 0 to 1, in one or more runs. `total` is 100 x the mean
    over questions and runs, `runs` the total of each, `std` their (population) deviation, all
    rounded to one decimal as officially; `capabilities` and `integrations` the same over the
    questions that need a capability, or exactly these. A missing grade is 0.

    Files: `mm-vet.json` ({id: {imagename, question, answer, capability}}), images in `images/`.
    Scored are the official gradings, {id: {"score": [one a run]}}; labels may also be LLaVA's
    question lines, which know no capabilities. LocalItem without GPT-4, an answer gets the share of
    the reference's parts it names: a stand-in, without official figures.
    """

    name = "mm-vet"
    files = "mm-vet.json and images/"
    label_files: ClassVar[tuple[str, ...]] = ("mm-vet.json", "*mm-vet*.jsonl")

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        if path.suffix == ".jsonl":
            lines = read_rows(path, ("question_id", "text"), param=param)
            return [_line(value) for value in lines]
        rows = []
        for name, value in read_object(path, param=param).items():
            if not isinstance(value, dict):
                raise unusable(path, f"{name} is no question", param=param)
            needed = value.get("capability", [])
            rows.append(
                LabelledQuestion(
                    id=name,
                    prompt=str(value.get("question", "")),
                    type="+".join(sorted(map(str, needed if isinstance(needed, list) else []))),
                    label=str(value.get("answer", "")),
                    image=str(value.get("imagename", "")),
                )
            )
        return rows

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return parts_named(row.label, answer)

    def summary(self, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
        return {}

    @classmethod
    def score(cls, files: ScoreFiles) -> dict[str, Any]:
        problems = Problems()
        grades = _gradings(files.answers, problems)
        labels = files.labels or files.questions
        if labels is None:
            rows = [LabelledQuestion(id=name) for name in grades]
        else:
            rows = cls.labelled(resolve_label_file(labels, cls.label_files), param="labels")
        known = {row.id for row in rows}
        for name in grades:
            if name not in known:
                problems.add("extra", name)
        spoilt = set(problems.found["malformed"])
        for name in known - set(grades) - spoilt:
            problems.add("missing", name)
        return {**_figures(rows, grades), "n": len(rows), "problems": problems.report()}


def _line(value: dict[str, Any]) -> LabelledQuestion:
    return LabelledQuestion(
        id=f"v1_{value['question_id']}",
        prompt=str(value["text"]),
        image=str(value.get("image", "")),
    )


def _gradings(path: Path, problems: Problems) -> dict[str, list[float]]:
    found = read_json(path, param="answers")
    if not isinstance(found, dict):
        raise unusable(path, "expected gradings, {id: {score: [...]}}", param="answers")
    grades: dict[str, list[float]] = {}
    for name, value in found.items():
        scores = value.get("score") if isinstance(value, dict) else None
        if isinstance(scores, list) and scores and all(map(_sound, scores)):
            grades[name] = [float(score) for score in scores]
        else:
            problems.add("malformed", name)
    if not grades:
        raise InvalidField(f"{path}: no entry has grades from 0 to 1", param="answers")
    return grades


def _sound(score: Any) -> bool:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return number and math.isfinite(score) and 0 <= score <= 1


def _figures(rows: Sequence[LabelledQuestion], grades: dict[str, list[float]]) -> dict[str, Any]:
    num_runs = max(map(len, grades.values()))
    runs = [_percent(rows, grades, run) for run in range(num_runs)]
    found: dict[str, Any] = {
        "total": round(mean(runs), 1),
        "std": round(statistics.pstdev(runs), 1),
        "runs": [round(run, 1) for run in runs],
    }
    integrations = sorted({row.type for row in rows if row.type})
    capabilities = sorted({part for kind in integrations for part in kind.split("+")})
    for key, names, has in (
        ("capabilities", capabilities, lambda kind, name: name in kind.split("+")),
        ("integrations", integrations, lambda kind, name: name == kind),
    ):
        if names:
            chosen = {name: [row for row in rows if has(row.type, name)] for name in names}
            found[key] = {
                name: round(mean([_percent(some, grades, run) for run in range(num_runs)]), 1)
                for name, some in chosen.items()
            }
    return found


def _percent(rows: Sequence[LabelledQuestion], grades: dict[str, list[float]], run: int) -> float:
    scores = [grades.get(row.id, []) for row in rows]
    return 100 * mean([found[run] if run < len(found) else 0.0 for found in scores])
