"""Arrival times and contents of the requests of a load, drawn before the run, from a seed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

QUESTIONS = (
    "What is in the middle of the picture?",
    "Which colour covers most of it?",
    "Describe the picture in one sentence.",
    "Is there anything in the upper left corner?",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadRequest:
    """One request: which image, which question, at which budget."""

    image: int
    question: str
    budget: float


def poisson_arrivals(rate: float, *, duration: float, seed: int) -> list[float]:
    """Seconds from the start of each arrival of a Poisson process, all before `duration`."""
    draw, at = Random(f"arrivals-{seed}-{rate:g}"), 0.0
    arrivals = []
    while (at := at + draw.expovariate(rate)) < duration:
        arrivals.append(at)
    return arrivals


def draw_requests(
    count: int, *, budgets: Sequence[float], num_images: int, seed: int
) -> list[LoadRequest]:
    """The same seed gives the same mix, whatever answers it."""
    draw = Random(f"asks-{seed}")
    return [
        LoadRequest(
            image=draw.randrange(num_images),
            question=draw.choice(QUESTIONS),
            budget=draw.choice(list(budgets)),
        )
        for _ in range(count)
    ]
