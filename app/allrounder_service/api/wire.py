"""The shapes of our own answers, as they stand on the wire and in OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from allrounder.answer import PlanUsage, Pruning, TimingMs, Usage


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat"]
    created: int
    model: str
    answer: str
    finish_reason: str
    usage: Usage
    pruning: Pruning
    timing: TimingMs


class PlanAnswer(BaseModel):
    """`flops` are those of the prompt: nothing was generated."""

    id: str
    object: Literal["plan"]
    created: int
    model: str
    usage: PlanUsage
    pruning: Pruning
    timing: TimingMs


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


class Strategy(BaseModel):
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
    strategies: list[Strategy]
    smallest_budget: float


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"]
