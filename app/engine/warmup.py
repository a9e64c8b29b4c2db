"""A request that exercises every stage: before readiness, and after a fault."""

from __future__ import annotations

import hashlib
import time

from app.budget import FlopsShare
from app.core import BudgetRequest, ChatRequest, ImageInput, SamplingParams
from app.engine.base import Runner, whole
from app.errors import AllrounderError

# Large enough that a family which lets the size decide has tokens to spare for a small budget.
_SIDE = 448
_PRUNED_SHARE = 0.5


def warm_up(runner: Runner) -> None:
    """Answer one dense and one pruned request. Raises whatever goes wrong."""
    smallest = runner.capabilities().smallest_budget
    for share in (1.0, max(_PRUNED_SHARE, min(2 * smallest, 1.0))):
        _answer(runner, _request(share))


def _request(share: float) -> ChatRequest:
    pixels = bytes([128]) * (_SIDE * _SIDE * 3)
    digest = hashlib.sha256(pixels).hexdigest()
    return ChatRequest(
        id=f"warm-up-{share:g}",
        images=(ImageInput(width=_SIDE, height=_SIDE, rgb=pixels, digest=digest),),
        question="What is there?",
        budget=BudgetRequest(form=FlopsShare(share=share), requested=share),
        sampling=SamplingParams(max_tokens=2),
        arrival=time.monotonic(),
    )


def _answer(runner: Runner, request: ChatRequest) -> None:
    (running,) = runner.begin([runner.prepare(request)])
    if isinstance(running, AllrounderError):
        raise running
    try:
        for _ in range(request.sampling.max_tokens):
            (outcome,) = runner.step(whole([running]))
            if outcome.error is not None:
                raise outcome.error
            if outcome.result is not None:
                return
    finally:
        runner.release(running)
