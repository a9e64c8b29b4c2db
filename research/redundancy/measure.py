"""Runs a frozen model over questions under every plan of the redundancy curves.

Shapes: L layers, R rows of a prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from statistics import fmean

import torch
from torch import Tensor

from allrounder.core import ImageInput, Plan
from allrounder.engine.execution.text import AnswerText
from allrounder.evaluation.benchmark import Item
from allrounder.training.bank import PictureBank
from allrounder.training.frozen import DenseAnswer, FrozenModel, Harm
from allrounder.training.look import best_look
from allrounder.training.samples import Picture
from allrounder.training.similarity import block_influence, layer_similarity
from research.redundancy.settings import (
    BEST_PERTURBED,
    FASTV_LOOK,
    PERTURBED,
    Choosing,
    RedundancyOptions,
    Setting,
    layer_plans,
    mixed_plans,
    token_plans,
)

Grade = Callable[[str], float]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Pictures with their questions; `grades` in their order, None where answers are unknown."""

    pictures: list[Picture]
    grades: tuple[Grade, ...] | None = None

    @property
    def num_questions(self) -> int:
        return sum(len(picture.questions) for picture in self.pictures)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one question: KL(dense || pruned) in nats, agreement with the dense answer and
    grade; each a mean over the draws of its setting.
    """

    kl_nats: float
    agreement: float
    grade: float | None


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """All that was measured, question by question.

    Attributes:
        clusters: of each question, its picture.
        similarity: tokens kept -> per question the mean over all rows, and that of the last row, L.
    """

    choosing: Choosing
    options: RedundancyOptions
    clusters: list[int] = field(default_factory=list)
    dense: list[Outcome] = field(default_factory=list)
    outcomes: dict[Setting, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    similarity: dict[str, list[tuple[Tensor, Tensor]]] = field(
        default_factory=lambda: defaultdict(list)
    )


def questions_of(items: Sequence[Item]) -> Questions:
    """A benchmark's items, those of a picture together."""
    ordered = sorted(items, key=_cluster)
    pictures = [
        Picture(load=partial(_image, group[0]), questions=tuple(item.question for item in group))
        for group in (list(found) for _, found in groupby(ordered, key=_cluster))
    ]
    return Questions(pictures=pictures, grades=tuple(item.grade for item in ordered))


def split_questions(
    questions: Questions, *, num_first: int, num_second: int
) -> tuple[Questions, Questions]:
    """The first pictures that hold `num_first` questions, and up to `num_second` on others."""
    cut, taken = 0, 0
    while cut < len(questions.pictures) and taken < num_first:
        taken += len(questions.pictures[cut].questions)
        cut += 1
    second: list[Picture] = []
    left = num_second
    for picture in questions.pictures[cut:]:
        if left > 0:
            second.append(replace(picture, questions=picture.questions[:left]))
        left -= len(picture.questions)
    grades = questions.grades
    return (
        Questions(pictures=questions.pictures[:cut], grades=grades and grades[:taken]),
        Questions(pictures=second, grades=grades and grades[taken : taken + num_second]),
    )


def choose(frozen: FrozenModel, questions: Questions) -> Choosing:
    """Layer order and best attention, without labels, on questions that are not measured later."""
    bank = PictureBank(frozen, questions.pictures)
    look, _ = best_look(bank)
    influences = [block_influence(frozen, asked) for batch in bank.batches() for _, asked in batch]
    protected = frozen.adapter.geometry.protected_layers
    return Choosing(
        influence=tuple(torch.stack(influences).mean(0).tolist()),
        look=look,
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
    """Every setting on every question; `tick` is told how many questions are done."""
    found = Redundancy(choosing=choosing, options=options)
    grades = list(questions.grades or ())
    probed = {FASTV_LOOK.layer_idx, choosing.look.layer_idx}
    for batch in PictureBank(frozen, questions.pictures).batches():
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
            for setting, outcome in outcomes.items():
                found.outcomes[setting].append(outcome)
        found.dense.extend(meter.dense)
        found.clusters.extend(picture_idx for picture_idx, _ in batch)
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
    def dense(self) -> list[Outcome]:
        grades: Sequence[float | None] = self._dense_grades or [None] * len(self._answers)
        return [Outcome(kl_nats=0.0, agreement=1.0, grade=grade) for grade in grades]

    def run(self, plans: Sequence[dict[Setting, list[Plan]]]) -> list[dict[Setting, Outcome]]:
        """The outcome of every setting, question by question."""
        keys = [
            (idx, setting, plan)
            for idx, of_setting in enumerate(plans)
            for setting, choices in of_setting.items()
            for plan in choices
        ]
        harms = self._frozen.compare([(self._answers[idx], plan) for idx, _, plan in keys])
        graded = self._grade([(idx, plan) for idx, _, plan in keys], harms)
        draws: list[dict[Setting, list[Outcome]]] = [defaultdict(list) for _ in plans]
        for (idx, setting, _), harm, grade in zip(keys, harms, graded, strict=True):
            outcome = Outcome(kl_nats=harm.kl_nats, agreement=float(harm.agrees), grade=grade)
            draws[idx][setting].append(outcome)
        return [
            {
                **{setting: _mean(outcomes) for setting, outcomes in found.items()},
                **{
                    Setting(curve=setting.curve, rule=BEST_PERTURBED, amount=setting.amount): min(
                        outcomes, key=lambda outcome: outcome.kl_nats
                    )
                    for setting, outcomes in found.items()
                    if setting.rule == PERTURBED
                },
            }
            for found in draws
        ]

    def _grade(
        self, trials: Sequence[tuple[int, Plan]], harms: Sequence[Harm]
    ) -> Sequence[float | None]:
        """A plan that agrees gives the dense answer; the others are decoded."""
        if not self._grades:
            return [None] * len(trials)
        graded: list[float | None] = [self._dense_grades[idx] for idx, _ in trials]
        differing = [at for at, harm in enumerate(harms) if not harm.agrees]
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


def _mean(outcomes: Sequence[Outcome]) -> Outcome:
    grades = [outcome.grade for outcome in outcomes if outcome.grade is not None]
    return Outcome(
        kl_nats=fmean(outcome.kl_nats for outcome in outcomes),
        agreement=fmean(outcome.agreement for outcome in outcomes),
        grade=fmean(grades) if grades else None,
    )


def _cluster(item: Item) -> int:
    return item.cluster


def _image(item: Item) -> ImageInput:
    return item.image
