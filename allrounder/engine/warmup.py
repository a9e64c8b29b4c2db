"""A request that exercises every stage: before readiness, and after a fault."""

from __future__ import annotations

import time
from uuid import uuid4

from allrounder.core import BudgetRequest, ChatRequest, ImageInput, SamplingParams
from allrounder.core.budget import FlopsShare
from allrounder.engine.offline import drive
from allrounder.engine.protocols import Runner

# Large enough that a family which lets the size decide has tokens to spare for a small budget.
_SIDE = 448
_PRUNED_SHARE = 0.5


def warm_up(runner: Runner) -> None:
    """Answer one dense and one pruned request. Raises whatever goes wrong."""
    smallest = runner.capabilities().smallest_budget
    for share in (1.0, max(_PRUNED_SHARE, min(2 * smallest, 1.0))):
        drive(runner, [_request(share)])


def _request(share: float) -> ChatRequest:
    pixels = bytes([128]) * (_SIDE * _SIDE * 3)
    return ChatRequest(
        id=f"warm-up-{share:g}",
        # A name of its own each time: an image that is in the cache would not be encoded.
        images=(ImageInput(width=_SIDE, height=_SIDE, rgb=pixels, digest=uuid4().hex),),
        question="What is there?",
        budget=BudgetRequest(form=FlopsShare(share=share), requested=share),
        sampling=SamplingParams(max_tokens=2),
        arrival=time.monotonic(),
    )
