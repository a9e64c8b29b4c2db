"""What is told of a finished request: usage, pruning and time. The same on the wire and in Python.

Only times are rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from allrounder.core import ChatRequest, ChatResult, FinishReason, Plan, Timing, TokenGrid


class PromptTokensDetails(BaseModel):
    image_tokens: int
    image_tokens_before: int


class PlanUsage(BaseModel):
    """`prompt_tokens` counts what the decoder processes: text and the image tokens kept."""

    prompt_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Usage(BaseModel):
    """`prompt_tokens` counts what the decoder processed: text and the image tokens kept."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class BudgetUse(BaseModel):
    """`expected_loyalty`: share of greedy answers equal to the dense one that the router's
    calibration promises for a plan of this size; null unless a quality was asked for."""

    requested: Any
    limit: float
    expected_loyalty: float | None


class VisualTokens(BaseModel):
    total: int
    kept: int


class Layers(BaseModel):
    total: int
    run: int
    skipped: list[int]


class Flops(BaseModel):
    """`dense` is counterfactual: the same prompt and answer with nothing pruned."""

    dense: int
    executed: int
    router: int
    saved: int
    prefill_ratio: float
    total_ratio: float


class KeptTokens(BaseModel):
    """One image's surviving tokens, by index; its grid is `rows` x `cols` from `offset` on.

    `area` is what the grid shows: left, top, width, height in shares of the image's sides."""

    rows: int | None
    cols: int | None
    offset: int | None
    area: list[float] | None
    indices: list[int] | None


class LayerDecision(BaseModel):
    layer: int
    run: bool
    visual_tokens: int


class Pruning(BaseModel):
    """`kept` and `decisions` are there only where `explain` was asked."""

    strategy: str
    router: str | None
    budget: BudgetUse
    visual_tokens: VisualTokens
    layers: Layers
    flops: Flops
    kept: list[KeptTokens] | None = None
    decisions: list[LayerDecision] | None = None


class TimingMs(BaseModel):
    queue_ms: float
    encode_ms: float
    plan_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What `VLM.generate` returns; `str()` of it is the text.

    Attributes:
        plan: the layers that ran and the visual tokens that were kept, by index.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    pruning: Pruning
    timing: TimingMs
    plan: Plan

    def __str__(self) -> str:
        return self.text


def answer_of(request: ChatRequest, result: ChatResult) -> Answer:
    return Answer(
        text=result.answer,
        finish_reason=result.finish_reason,
        usage=usage_of(result),
        pruning=pruning_of(request, result),
        timing=timing_of(result.timing),
        plan=result.plan,
    )


def plan_usage_of(result: ChatResult) -> PlanUsage:
    plan = result.plan
    return PlanUsage(
        prompt_tokens=result.shape.num_text + plan.num_kept,
        prompt_tokens_details=PromptTokensDetails(
            image_tokens=plan.num_kept, image_tokens_before=plan.num_visual
        ),
    )


def usage_of(result: ChatResult) -> Usage:
    prompt = plan_usage_of(result)
    return Usage(
        prompt_tokens=prompt.prompt_tokens,
        completion_tokens=result.num_generated,
        total_tokens=prompt.prompt_tokens + result.num_generated,
        prompt_tokens_details=prompt.prompt_tokens_details,
    )


def pruning_of(request: ChatRequest, result: ChatResult) -> Pruning:
    plan = result.plan
    skipped = list(plan.skipped_layers)
    explained = _explained(result) if request.explain else {}
    return Pruning(
        strategy=plan.strategy,
        router=plan.router,
        budget=BudgetUse(
            requested=request.budget.requested,
            limit=result.budget_limit,
            expected_loyalty=plan.loyalty,
        ),
        visual_tokens=VisualTokens(total=plan.num_visual, kept=plan.num_kept),
        layers=Layers(total=len(plan.runs), run=plan.num_layers_run, skipped=skipped),
        flops=_flops(result),
        **explained,
    )


def _flops(result: ChatResult) -> Flops:
    cost = result.cost
    return Flops(
        dense=cost.dense,
        executed=cost.executed,
        router=cost.router,
        saved=cost.saved,
        prefill_ratio=cost.prefill_ratio,
        total_ratio=cost.total_ratio,
    )


def _explained(result: ChatResult) -> dict[str, Any]:
    plan = result.plan
    decisions = [
        LayerDecision(layer=idx, run=runs, visual_tokens=plan.visual_rows(idx) if runs else 0)
        for idx, runs in enumerate(plan.runs)
    ]
    return {"kept": _kept(plan, result), "decisions": decisions}


def _kept(plan: Plan, result: ChatResult) -> list[KeptTokens]:
    """Split the plan's indexes over all images into indexes of each image."""
    start, found = 0, []
    for idx, count in enumerate(result.shape.visual_per_image):
        grid: TokenGrid | None = result.grids[idx] if idx < len(result.grids) else None
        own = range(start, start + count)
        indices = None if plan.kept is None else [each - start for each in plan.kept if each in own]
        found.append(
            KeptTokens(
                rows=None if grid is None else grid.rows,
                cols=None if grid is None else grid.cols,
                offset=None if grid is None else grid.offset,
                area=None if grid is None else list(grid.area),
                indices=indices,
            )
        )
        start += count
    return found


def timing_of(timing: Timing) -> TimingMs:
    return TimingMs(
        queue_ms=_milliseconds(timing.queue),
        encode_ms=_milliseconds(timing.encode),
        plan_ms=_milliseconds(timing.plan),
        prefill_ms=_milliseconds(timing.prefill),
        decode_ms=_milliseconds(timing.decode),
        total_ms=_milliseconds(timing.total),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
