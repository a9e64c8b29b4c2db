"""Runs a frozen model over questions under every plan of the redundancy curves.

Shapes: L layers, R rows of a prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from statistics import fmean

import torch
from torch import Tensor

from allrounder.core import ImageInput, Plan
from allrounder.engine.execution.sampling import AnswerText
from allrounder.evaluation.benchmark import Item
from allrounder.measure.divergence import Divergence
from allrounder.measure.frozen import DenseAnswer, FrozenModel
from allrounder.training.attention_target import best_target
from allrounder.training.bank import ImageBank
from allrounder.training.samples import ImageQuestions, limit_questions, split_images
from allrounder.training.similarity import block_influence, layer_similarity
from research.redundancy.plans import (
    BEST_PERTURBED,
    FASTV_TARGET,
    PERTURBED,
    Choosing,
    CurvePoint,
    RedundancyOptions,
    layer_plans,
    mixed_plans,
    token_plans,
)

Grade = Callable[[str], float]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Images with their questions; `grades` in their order, None where answers are unknown."""

    images: list[ImageQuestions]
    grades: tuple[Grade, ...] | None = None

    @property
    def num_questions(self) -> int:
        return sum(len(image.questions) for image in self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOutcome:
    """Outcome of one question: KL(dense || pruned) in nats, agreement with the dense answer and
    grade; each a mean over the draws of its point.
    """

    kl_nats: float
    agreement: float
    grade: float | None


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """All that was measured, question by question.

    Attributes:
        clusters: of each question, its image.
        similarity: tokens kept -> per question the mean over all rows, and that of the last row, L.
    """

    choosing: Choosing
    options: RedundancyOptions
    clusters: list[int] = field(default_factory=list)
    dense: list[PlanOutcome] = field(default_factory=list)
    outcomes: dict[CurvePoint, list[PlanOutcome]] = field(default_factory=lambda: defaultdict(list))
    similarity: dict[str, list[tuple[Tensor, Tensor]]] = field(
        default_factory=lambda: defaultdict(list)
    )


def questions_of(items: Sequence[Item]) -> Questions:
    """A benchmark's items, those of an image together."""
    ordered = sorted(items, key=_cluster)
    images = [
        ImageQuestions(
            load=partial(_image, group[0]), questions=tuple(item.question for item in group)
        )
        for group in (list(found) for _, found in groupby(ordered, key=_cluster))
    ]
    return Questions(images=images, grades=tuple(item.grade for item in ordered))


def split_questions(
    questions: Questions, *, num_first: int, num_second: int
) -> tuple[Questions, Questions]:
    """The first images that hold `num_first` questions, and up to `num_second` on others."""
    first, rest = split_images(questions.images, num_first=num_first)
    taken = sum(len(image.questions) for image in first)
    grades = questions.grades
    return (
        Questions(images=first, grades=grades and grades[:taken]),
        Questions(
            images=limit_questions(rest, num_second),
            grades=grades and grades[taken : taken + num_second],
        ),
    )


def choose(frozen: FrozenModel, questions: Questions) -> Choosing:
    """Layer order and best attention, without labels, on questions that are not measured later."""
    bank = ImageBank(frozen, questions.images)
    target, _ = best_target(bank)
    influences = [block_influence(frozen, asked) for batch in bank.batches() for _, asked in batch]
    protected = frozen.adapter.geometry.protected_layers
    return Choosing(
        influence=tuple(torch.stack(influences).mean(0).tolist()),
        target=target,
        # Without the first layer nothing is said: ShortGPT keeps it too.
        candidates=tuple(idx for idx in range(1, frozen.num_layers) if idx not in protected),
    )


def measure(
    frozen: FrozenModel,
    questions: Questions,
    choosing: Choosing,
    options: RedundancyOptions,
    *,
    tick: Callable[[int], object] = lambda _: None,
) -> Redundancy:
    """Every point on every question; `tick` is told how many questions are done."""
    found = Redundancy(choosing=choosing, options=options)
    grades = list(questions.grades or ())
    probed = {FASTV_TARGET.layer_idx, choosing.target.layer_idx}
    for batch in ImageBank(frozen, questions.images).batches():
        answers = frozen.answer([asked for _, asked in batch], probed_layers=sorted(probed))
        start = len(found.dense)
        meter = _Meter(frozen, answers, grades[start : start + len(batch)])
        plans = [
            {
                **layer_plans(answer, choosing, options, sample=start + idx),
                **token_plans(answer, choosing, options, sample=start + idx),
            }
            for idx, answer in enumerate(answers)
        ]
        for outcomes in meter.run(plans):
            for point, outcome in outcomes.items():
                found.outcomes[point].append(outcome)
        found.dense.extend(meter.dense)
        found.clusters.extend(image_idx for image_idx, _ in batch)
        for idx, answer in enumerate(answers):
            mixed = mixed_plans(answer, choosing, options, sample=start + idx)
            for name, plan in mixed.items():
                similarity_LR = layer_similarity(frozen, answer.asked, plan)
                found.similarity[name].append((similarity_LR.mean(1), similarity_LR[:, -1]))
        tick(len(batch))
    return found


class _Meter:
    """Outcomes of some questions; `grades` is empty where the answers are not known."""

    def __init__(
        self, frozen: FrozenModel, answers: Sequence[DenseAnswer], grades: Sequence[Grade]
    ) -> None:
        self._frozen = frozen
        self._answers = answers
        self._grades = grades
        self._dense_grades = [
            grade(self._text(answer.token_ids))
            for grade, answer in zip(grades, answers, strict=bool(grades))
        ]

    @property
    def dense(self) -> list[PlanOutcome]:
        grades: Sequence[float | None] = self._dense_grades or [None] * len(self._answers)
        return [PlanOutcome(kl_nats=0.0, agreement=1.0, grade=grade) for grade in grades]

    def run(
        self, plans: Sequence[dict[CurvePoint, list[Plan]]]
    ) -> list[dict[CurvePoint, PlanOutcome]]:
        """The outcome of every point, question by question."""
        keys = [
            (idx, point, plan)
            for idx, of_question in enumerate(plans)
            for point, choices in of_question.items()
            for plan in choices
        ]
        divergences = self._frozen.compare([(self._answers[idx], plan) for idx, _, plan in keys])
        graded = self._grade([(idx, plan) for idx, _, plan in keys], divergences)
        draws: list[dict[CurvePoint, list[PlanOutcome]]] = [defaultdict(list) for _ in plans]
        for (idx, point, _), divergence, grade in zip(keys, divergences, graded, strict=True):
            outcome = PlanOutcome(
                kl_nats=divergence.kl_nats, agreement=float(divergence.agrees), grade=grade
            )
            draws[idx][point].append(outcome)
        return [
            {
                **{point: _mean(outcomes) for point, outcomes in found.items()},
                **{
                    CurvePoint(curve=point.curve, rule=BEST_PERTURBED, amount=point.amount): min(
                        outcomes, key=lambda outcome: outcome.kl_nats
                    )
                    for point, outcomes in found.items()
                    if point.rule == PERTURBED
                },
            }
            for found in draws
        ]

    def _grade(
        self, trials: Sequence[tuple[int, Plan]], divergences: Sequence[Divergence]
    ) -> Sequence[float | None]:
        """A plan that agrees gives the dense answer; the others are decoded."""
        if not self._grades:
            return [None] * len(trials)
        graded: list[float | None] = [self._dense_grades[idx] for idx, _ in trials]
        differing = [at for at, each in enumerate(divergences) if not each.agrees]
        decoded = self._frozen.decode(
            [(self._answers[trials[at][0]], trials[at][1]) for at in differing]
        )
        for at, token_ids in zip(differing, decoded, strict=True):
            graded[at] = self._grades[trials[at][0]](self._text(token_ids))
        return graded

    def _text(self, token_ids: Sequence[int]) -> str:
        answer = AnswerText(self._frozen.adapter.text_stream(), ())
        for token_id in token_ids:
            if token_id not in self._frozen.adapter.eos_token_ids:
                answer.push(token_id)
        return answer.text


def _mean(outcomes: Sequence[PlanOutcome]) -> PlanOutcome:
    grades = [outcome.grade for outcome in outcomes if outcome.grade is not None]
    return PlanOutcome(
        kl_nats=fmean(outcome.kl_nats for outcome in outcomes),
        agreement=fmean(outcome.agreement for outcome in outcomes),
        grade=fmean(grades) if grades else None,
    )


def _cluster(item: Item) -> int:
    return item.cluster


def _image(item: Item) -> ImageInput:
    return item.image
