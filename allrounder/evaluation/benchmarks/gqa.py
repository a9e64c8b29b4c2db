"""GQA: compositional questions about real images, answered in a word."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from allrounder.evaluation.grading import GivenAnswer, LabelledQuestion, read_answers
from allrounder.evaluation.local import LocalBenchmark
from allrounder.evaluation.official_files import read_object, unusable
from allrounder.evaluation.reading import ONE_WORD, exact_words


class Gqa(LocalBenchmark):
    """Hudson and Manning, GQA (1902.09506), split testdev_balanced.

    Metric: `accuracy`, exact agreement in lower case without a last full stop, as LLaVA hands
    answers to the official script.

    Files: `testdev_balanced_questions.json` ({id: {question, imageId, answer}}), images in
    `images/<imageId>.jpg`. Answers: lines with question_id and text, or the official list of
    questionId and prediction.
    """

    name = "gqa"
    files = "testdev_balanced_questions.json and images/<imageId>.jpg"
    label_files: ClassVar[tuple[str, ...]] = (
        "testdev_balanced_questions.json",
        "*balanced_questions*.json",
    )

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        rows = []
        for name, value in read_object(path, param=param).items():
            if not isinstance(value, dict) or not isinstance(value.get("answer"), str):
                raise unusable(path, f"question {name} has no answer", param=param)
            kind = value.get("types")
            rows.append(
                LabelledQuestion(
                    id=name,
                    prompt=f"{value.get('question', '')}\n{ONE_WORD}",
                    type=str(kind.get("structural", "")) if isinstance(kind, dict) else "",
                    label=value["answer"],
                    image=f"{value['imageId']}.jpg" if "imageId" in value else "",
                )
            )
        if not rows:
            raise unusable(path, "holds no questions", param=param)
        return rows

    @classmethod
    def given(cls, answers: Path) -> list[GivenAnswer]:
        return [
            GivenAnswer(place=answer.place, id=answer.id, text=answer.text)
            for answer in read_answers(answers)
        ]

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return float(exact_words(answer) == exact_words(row.label))
