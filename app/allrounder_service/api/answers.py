"""ChatResult -> the wire answer, Capabilities -> the model list. Only times are rounded."""

from __future__ import annotations

from typing import Any

from allrounder.core import (
    Capabilities,
    ChatRequest,
    ChatResult,
    ModelGeometry,
    Plan,
    Timing,
    TokenGrid,
)
from allrounder_service.api import wire


def chat_answer(
    request: ChatRequest, result: ChatResult, *, model: str, created: int
) -> dict[str, Any]:
    prompt = _plan_usage(result)
    usage = wire.Usage(
        prompt_tokens=prompt.prompt_tokens,
        completion_tokens=result.num_generated,
        total_tokens=prompt.prompt_tokens + result.num_generated,
        prompt_tokens_details=prompt.prompt_tokens_details,
    )
    answer = wire.ChatAnswer(
        id=request.id,
        object="chat",
        created=created,
        model=model,
        answer=result.answer,
        finish_reason=result.finish_reason,
        usage=usage,
        pruning=pruning_of(request, result),
        timing=timing_of(result.timing),
    )
    return answer.model_dump(exclude_unset=True)


def plan_answer(
    request: ChatRequest, result: ChatResult, *, model: str, created: int
) -> dict[str, Any]:
    answer = wire.PlanAnswer(
        id=request.id,
        object="plan",
        created=created,
        model=model,
        usage=_plan_usage(result),
        pruning=pruning_of(request, result),
        timing=timing_of(result.timing),
    )
    return answer.model_dump(exclude_unset=True)


def model_list(capabilities: Capabilities, *, created: int) -> dict[str, Any]:
    strategies = [
        wire.Strategy(
            name=each.name,
            prunes_tokens=each.prunes_tokens,
            prunes_layers=each.prunes_layers,
            options=dict(each.options),
        )
        for each in capabilities.strategies
    ]
    model = wire.Model(
        id=capabilities.model,
        object="model",
        created=created,
        owned_by="allrounder",
        family=capabilities.family,
        fingerprint=capabilities.fingerprint,
        device=capabilities.device,
        dtype=capabilities.dtype,
        geometry=_geometry(capabilities.geometry),
        visual_tokens=capabilities.visual_tokens,
        max_images=capabilities.max_images,
        router=capabilities.router,
        default_strategy=capabilities.default_strategy,
        strategies=strategies,
        smallest_budget=capabilities.smallest_budget,
    )
    return wire.ModelList(object="list", data=[model]).model_dump()


def _plan_usage(result: ChatResult) -> wire.PlanUsage:
    plan = result.plan
    return wire.PlanUsage(
        prompt_tokens=result.shape.num_text + plan.num_kept,
        prompt_tokens_details=wire.PromptTokensDetails(
            image_tokens=plan.num_kept, image_tokens_before=plan.num_visual
        ),
    )


def pruning_of(request: ChatRequest, result: ChatResult) -> wire.Pruning:
    plan = result.plan
    skipped = list(plan.skipped_layers)
    explained = _explained(result) if request.explain else {}
    return wire.Pruning(
        strategy=plan.strategy,
        router=plan.router,
        budget=wire.BudgetUse(
            requested=request.budget.requested,
            limit=result.budget_limit,
            expected_loyalty=plan.loyalty,
        ),
        visual_tokens=wire.VisualTokens(total=plan.num_visual, kept=plan.num_kept),
        layers=wire.Layers(total=len(plan.runs), run=plan.num_layers_run, skipped=skipped),
        flops=_flops(result),
        **explained,
    )


def _flops(result: ChatResult) -> wire.Flops:
    cost = result.cost
    return wire.Flops(
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
        wire.LayerDecision(layer=idx, run=runs, visual_tokens=plan.visual_rows(idx) if runs else 0)
        for idx, runs in enumerate(plan.runs)
    ]
    return {"kept": _kept(plan, result), "decisions": decisions}


def _kept(plan: Plan, result: ChatResult) -> list[wire.KeptTokens]:
    """Split the plan's indexes over all images into indexes of each image."""
    start, found = 0, []
    for idx, count in enumerate(result.shape.visual_per_image):
        grid: TokenGrid | None = result.grids[idx] if idx < len(result.grids) else None
        own = range(start, start + count)
        indices = None if plan.kept is None else [each - start for each in plan.kept if each in own]
        found.append(
            wire.KeptTokens(
                rows=None if grid is None else grid.rows,
                cols=None if grid is None else grid.cols,
                offset=None if grid is None else grid.offset,
                area=None if grid is None else list(grid.area),
                indices=indices,
            )
        )
        start += count
    return found


def timing_of(timing: Timing) -> wire.TimingMs:
    return wire.TimingMs(
        queue_ms=_ms(timing.queue),
        encode_ms=_ms(timing.encode),
        plan_ms=_ms(timing.plan),
        prefill_ms=_ms(timing.prefill),
        decode_ms=_ms(timing.decode),
        total_ms=_ms(timing.total),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _geometry(geometry: ModelGeometry) -> wire.Geometry:
    return wire.Geometry(
        layers=geometry.num_layers,
        width=geometry.width,
        heads=geometry.num_heads,
        kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        mlp_width=geometry.mlp_width,
        vocabulary=geometry.vocab_size,
        max_positions=geometry.max_positions,
        protected_layers=sorted(geometry.protected_layers),
    )
