"""The nouns that every other package speaks in. Frozen, keyword-only, free of torch and HTTP."""

from app.core.chat import (
    BudgetRequest,
    Capabilities,
    ChatRequest,
    ChatResult,
    FinishReason,
    Priority,
    SamplingParams,
    Stage,
    StrategyInfo,
    Timing,
    TokenChunk,
)
from app.core.model import (
    ImageInput,
    ImageLayout,
    ModelGeometry,
    Prompt,
    PromptShape,
    TokenGrid,
    VisionGeometry,
)
from app.core.plan import Cost, Plan, Selection

__all__ = [
    "BudgetRequest",
    "Capabilities",
    "ChatRequest",
    "ChatResult",
    "Cost",
    "FinishReason",
    "ImageInput",
    "ImageLayout",
    "ModelGeometry",
    "Plan",
    "Priority",
    "Prompt",
    "PromptShape",
    "SamplingParams",
    "Selection",
    "Stage",
    "StrategyInfo",
    "Timing",
    "TokenChunk",
    "TokenGrid",
    "VisionGeometry",
]
