"""What a benchmark is: items with an image, a question and a grade for any answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from allrounder.core import ImageInput


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    Attributes:
        cluster: items of one image share it; their errors are not independent.
        grade: answer text -> score from 0 (wrong) to 1 (right).
    """

    image: ImageInput
    question: str
    type: str
    cluster: int
    grade: Callable[[str], float]


class Benchmark(Protocol):
    """A named source of items; the same seed and limit give the same items."""

    name: str

    def items(self, *, limit: int, seed: int) -> Sequence[Item]: ...

    def summary(self, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
        """The benchmark's official figures, where they are more than the mean grade."""
        ...
