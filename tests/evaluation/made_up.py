"""A benchmark of made-up questions, and runners without a model that answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from allrounder.core import ChatRequest
from allrounder.engine.fake import FakePrepared, FakeRunner
from allrounder.engine.protocols import Runner
from allrounder.evaluation.benchmark import Item
from allrounder.evaluation.cell_store import CellStore
from allrounder.evaluation.command import GridJob, GridSpec
from allrounder.evaluation.report import Report
from allrounder.evaluation.run import RunOptions
from allrounder.evaluation.subjects import Subject
from tests.tiny import noise_image

ENVIRONMENT = {
    "command": "allrounder evaluate",
    "cpu": "A processor",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "commit": "0123456789ab",
}


class MadeUp:
    """Two questions an image; a runner that echoes is right in every other one."""

    name = "made-up"

    def items(self, *, limit: int, seed: int) -> Sequence[Item]:
        return [
            Item(
                image=noise_image(10_000 * seed + idx // 2),
                question=f"word {idx}",
                type=("even", "odd")[idx % 2],
                cluster=idx // 2,
                grade=partial(_grade, idx),
            )
            for idx in range(limit)
        ]

    def summary(self, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
        return {}


def _grade(idx: int, answer: str) -> float:
    return float(idx % 2 == 0 and answer == f"word {idx}")


@dataclass(kw_only=True)
class KnobRunner(FakeRunner):
    """Right only where `layer` is `good_layer`, and refuses to go on after `patience` questions."""

    good_layer: int | None = None
    patience: int | None = None
    asked: list[ChatRequest] = field(default_factory=list)

    def prepare(self, request: ChatRequest) -> FakePrepared:
        if self.patience is not None and len(self.asked) >= self.patience:
            raise KeyboardInterrupt
        self.asked.append(request)
        if request.budget.options.get("layer") not in (None, self.good_layer):
            return super().prepare(replace(request, question="something else"))
        return super().prepare(request)


def run(
    *,
    runner: Runner | None = None,
    store: CellStore | None = None,
    strategies: Sequence[str] = ("none", "fake"),
    budgets: Sequence[str] = ("1", "0.7"),
    limits: dict[str, int] | None = None,
    options: RunOptions | None = None,
    skips_unknown: bool = False,
) -> Report:
    answering = runner or FakeRunner()
    subject = Subject(quality=answering, timed=answering)
    spec = GridSpec(
        strategies=strategies,
        budgets=budgets,
        limits=limits or {"*": 20},
        skips_unknown=skips_unknown,
        options=options or RunOptions(selection=12),
    )
    job = GridJob({None: subject}, MadeUp(), spec)
    return job.run(store or CellStore(None), environment=ENVIRONMENT, tick=lambda _: None)
