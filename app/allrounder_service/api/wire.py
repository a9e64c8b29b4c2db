"""The shapes of our own answers, as they stand on the wire and in OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


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
