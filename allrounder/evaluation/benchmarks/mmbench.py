"""MMBench and MMBench-CN: multiple choice, asked once for every rotation of the choices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from allrounder.core import ImageInput
from allrounder.evaluation.benchmarks.choices import MultipleChoice, asked
from allrounder.evaluation.grading import GivenAnswer, LabelledQuestion, read_answers
from allrounder.evaluation.local import from_base64, mean
from allrounder.evaluation.official_files import read_table, unusable
from allrounder.evaluation.reading import LETTERS, ONE_LETTER, ONE_LETTER_CN

CIRCLE = 1_000_000
_ABSENT = ("", "nan", "none")
# Shorter cells are no image but the index of the row that has it.
_LEAST_IMAGE = 64


class MMBench(MultipleChoice):
    """Liu et al., MMBench: Is Your Multi-modal Model an All-around Player? (2307.06281).

    Protocol: rows whose indexes agree modulo 1,000,000 are one question with its choices rotated.
    `plain` (VanillaEval) is the share of questions answered right in their first order, `circular`
    (CircularEval) of those right in every order. Where letters cannot be read, the official tool
    asks ChatGPT; here the answer is wrong and `unreadable`.

    Files: a TSV or XLSX with index, question, A, B, ..., answer and, to be asked, image (base64);
    hint and category where there are. A file without rotated rows is rotated when it is asked.
    Answers: TSV, CSV or XLSX with index and prediction (the file of labels itself may hold them),
    or lines with question_id = index.
    """

    name = "mmbench"
    files = "a TSV with index, question, A to D, answer and image (mmbench_dev_20230712.tsv)"
    label_files: ClassVar[tuple[str, ...]] = (
        "*mmbench*dev*.tsv",
        "*mmbench*en*.tsv",
        "*.tsv",
        "*.xlsx",
    )
    instruction: ClassVar[str] = ONE_LETTER

    def rows(self) -> list[LabelledQuestion]:
        rows = super().rows()
        images = {row.id: row.image for row in rows}
        rows = [_with_image(row, images) for row in rows]
        turned = any(row.id != row.group for row in rows)
        return rows if turned else [each for row in rows for each in self.rotations(row)]

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        rows = []
        for place, line in enumerate(read_table(path, ("index", "answer"), param=param), 2):
            index, label = line["index"].strip(), line["answer"].strip()
            if not (index.isascii() and index.isdigit()) or label not in LETTERS or len(label) != 1:
                raise unusable(path, f"row {place} has no index and letter", param=param)
            rows.append(cls._row(line, str(int(index)), label))
        return rows

    @classmethod
    def _row(cls, line: dict[str, str], index: str, label: str) -> LabelledQuestion:
        present = [line.get(letter, "") for letter in LETTERS[:4]]
        absent = [n for n, choice in enumerate(present) if choice.strip().lower() in _ABSENT]
        choices = tuple(present[: absent[0]] if absent else present) or tuple(LETTERS[:4])
        hint = line.get("hint", "")
        question = line.get("question", "")
        if hint.strip().lower() not in _ABSENT:
            question = f"{hint}\n{question}"
        return LabelledQuestion(
            id=index,
            prompt=asked(question, choices, instruction=cls.instruction),
            type=line.get("category", ""),
            label=label,
            labels=(question,),
            choices=choices,
            group=str(int(index) % CIRCLE),
            image=line.get("image", ""),
        )

    @classmethod
    def given(cls, answers: Path) -> list[GivenAnswer]:
        # Prompts repeat under every rotation: only the index joins.
        return [
            GivenAnswer(place=answer.place, id=answer.id, text=answer.text)
            for answer in read_answers(answers)
        ]

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        circles: dict[str, dict[int, float]] = defaultdict(dict)
        for row, grade in zip(rows, cls.grades(rows, texts), strict=True):
            circles[row.group][int(row.id)] = grade
        return {
            "plain": mean([grades[min(grades)] for grades in circles.values()]),
            "circular": mean([min(grades.values()) for grades in circles.values()]),
        }

    @classmethod
    def rotations(cls, row: LabelledQuestion) -> list[LabelledQuestion]:
        """The row with its choices in every rotated order, the first unchanged."""
        size = len(row.choices)
        place = LETTERS.index(row.label)
        question = row.labels[0]
        turned = []
        for turn in range(size):
            choices = row.choices[turn:] + row.choices[:turn]
            turned.append(
                replace(
                    row,
                    id=str(int(row.id) + turn * CIRCLE),
                    prompt=asked(question, choices, instruction=cls.instruction),
                    label=LETTERS[(place - turn) % size],
                    choices=choices,
                )
            )
        return turned

    def image(self, name: str) -> ImageInput:
        return from_base64(name, "an MMBench row")


class MMBenchCN(MMBench):
    """MMBench in Chinese; protocol and files as MMBench's, with LLaVA's Chinese instruction."""

    name = "mmbench-cn"
    files = "a TSV with index, question, A to D, answer and image (mmbench_dev_cn_20231003.tsv)"
    label_files: ClassVar[tuple[str, ...]] = (
        "*mmbench*cn*.tsv",
        "*mmbench*zh*.tsv",
        "*.tsv",
        "*.xlsx",
    )
    instruction: ClassVar[str] = ONE_LETTER_CN


def _with_image(row: LabelledQuestion, images: dict[str, str]) -> LabelledQuestion:
    if len(row.image) >= _LEAST_IMAGE:
        return row
    name = row.image.strip() or row.group
    return replace(row, image=images.get(name, ""))
