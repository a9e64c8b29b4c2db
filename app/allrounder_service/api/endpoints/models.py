"""GET /v1/models: the served model and what it can do."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from allrounder.core import Capabilities, ModelGeometry
from allrounder_service.api.deps import ServicesDep, TenantDep, require_ready
from allrounder_service.api.problems import problems

api = APIRouter(prefix="/v1", tags=["models"])


class Geometry(BaseModel):
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int
    max_positions: int
    protected_layers: list[int]


class StrategyEntry(BaseModel):
    name: str
    prunes_tokens: bool
    prunes_layers: bool
    options: dict[str, Any]


class Model(BaseModel):
    """`smallest_budget` is for a typical prompt; a longer text raises it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    family: str
    fingerprint: str
    device: str
    dtype: str
    geometry: Geometry
    visual_tokens: int | None
    max_images: int
    router: str | None
    default_strategy: str
    strategies: list[StrategyEntry]
    smallest_budget: float


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


@api.head("/models", include_in_schema=False)
@api.get(
    "/models",
    response_model=None,
    responses={**problems(401, 429, 500, 503), 200: {"model": ModelList}},
)
async def models(services: ServicesDep, _tenant: TenantDep) -> Response:
    """The model with its geometry, strategies, router and smallest budget."""
    require_ready(services.engine)
    model = _model(services.engine.capabilities(), created=services.started)
    return JSONResponse(ModelList(object="list", data=[model]).model_dump())


def _model(capabilities: Capabilities, *, created: int) -> Model:
    strategies = [
        StrategyEntry(
            name=each.name,
            prunes_tokens=each.prunes_tokens,
            prunes_layers=each.prunes_layers,
            options=dict(each.options),
        )
        for each in capabilities.strategies
    ]
    return Model(
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


def _geometry(geometry: ModelGeometry) -> Geometry:
    return Geometry(
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
