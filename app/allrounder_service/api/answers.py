"""ChatResult -> the wire answer, Capabilities -> the model list. Only times are rounded."""

from __future__ import annotations

from typing import Any

from allrounder.answer import plan_usage_of, pruning_of, timing_of, usage_of
from allrounder.core import (
    Capabilities,
    ChatRequest,
    ChatResult,
    ModelGeometry,
)
from allrounder_service.api import wire


def chat_answer(
    request: ChatRequest, result: ChatResult, *, model: str, created: int
) -> dict[str, Any]:
    answer = wire.ChatAnswer(
        id=request.id,
        object="chat",
        created=created,
        model=model,
        answer=result.answer,
        finish_reason=result.finish_reason,
        usage=usage_of(result),
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
        usage=plan_usage_of(result),
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
