"""Judges of free text: each scores the reference and the answer.

The official judge of LLaVA-Bench is GPT-4 by text. Any judge can be plugged in; the two here need
no model and stand in for it, so their figures are not comparable with published ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from allrounder.evaluation.reading import vqa_words

FULL_SCORE = 10.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Scores from 0 to 10, as LLaVA-Bench's reviews give them."""

    reference: float
    answer: float


class Judge(Protocol):
    """Compares an answer with a reference answer to the same question; must not raise."""

    official: bool

    def __call__(self, question: str, reference: str, answer: str) -> Verdict: ...


class WordOverlap:
    """F1 of the words that answer and reference share; the reference gets the full score."""

    official = False

    def __call__(self, question: str, reference: str, answer: str) -> Verdict:
        expected, said = (Counter(vqa_words(text).split()) for text in (reference, answer))
        total = expected.total() + said.total()
        shared = 2 * (expected & said).total() / total if total else 0.0
        return Verdict(reference=FULL_SCORE, answer=FULL_SCORE * shared)


def parts_named(reference: str, answer: str) -> float:
    """Share of a reference's `<AND>` parts of which the answer has one `<OR>` variant, as words."""
    said = f" {vqa_words(answer)} "
    parts = [
        [words for variant in part.split("<OR>") if (words := vqa_words(variant))]
        for part in reference.split("<AND>")
    ]
    parts = [part for part in parts if part]
    if not parts:
        return 0.0
    return sum(any(f" {words} " in said for words in part) for part in parts) / len(parts)
