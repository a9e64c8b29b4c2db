"""What the benchmarks of multiple choice share: the prompt, the grade, the circular figure."""

from __future__ import annotations

from collections.abc import Sequence

from allrounder.evaluation.grading import LabelledQuestion
from allrounder.evaluation.local import LocalBenchmark
from allrounder.evaluation.reading import LETTERS, ONE_LETTER, option_letter


class MultipleChoice(LocalBenchmark):
    """Graded by the letter that `option_letter` reads; no letter is wrong."""

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return float(option_letter(answer, row.choices) == row.label)

    @staticmethod
    def is_readable(row: LabelledQuestion, answer: str, /) -> bool:
        return option_letter(answer, row.choices) is not None


def asked(question: str, choices: Sequence[str], *, instruction: str = ONE_LETTER) -> str:
    """LLaVA's prompt: the question, a line a choice, the instruction."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *options, instruction])
