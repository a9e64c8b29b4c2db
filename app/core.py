"""The nouns that every other package speaks in. Frozen, keyword-only, free of torch and HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.budget import Budget


class Stage(StrEnum):
    ENCODE = "encode"
    PLAN = "plan"
    PREFILL = "prefill"
    DECODE = "decode"


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGeometry:
    """The decoder's shape: all that cost arithmetic and budget allocation need to know of it.

    Attributes:
        mlp_width: inner width of the gated MLP, which has three matrices.
        bytes_per_value: size of one stored key or value element.
        protected_layers: layers that no plan may skip.
    """

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    max_positions: int
    bytes_per_value: int = 4
    protected_layers: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """One decoded image: `rgb` holds height * width * 3 bytes, row by row; `digest` is theirs."""

    width: int
    height: int
    rgb: bytes
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptShape:
    """How many rows a prompt has: text rows, and visual rows per image before pruning.

    Attributes:
        num_question: those text rows that follow the last image.
    """

    num_text: int
    visual_per_image: tuple[int, ...]
    num_question: int = 0

    @property
    def num_visual(self) -> int:
        return sum(self.visual_per_image)

    @property
    def num_rows(self) -> int:
        return self.num_text + self.num_visual


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Token ids with image ids at the visual slots.

    Attributes:
        visual_slots: (start, count) of each image's run of image ids, ascending.
        question_slot: (start, count) of the text that follows the last image: the question
            and the assistant's tag, which attention-based strategies and the router read.
    """

    token_ids: tuple[int, ...]
    visual_slots: tuple[tuple[int, int], ...]
    question_slot: tuple[int, int]

    @property
    def shape(self) -> PromptShape:
        counts = tuple(count for _, count in self.visual_slots)
        return PromptShape(
            num_text=len(self.token_ids) - sum(counts),
            visual_per_image=counts,
            num_question=self.question_slot[1],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """At the input of decoder layer `layer_idx` only these visual rows go on.

    Attributes:
        count: how many survive; exact, and known before prefill.
        kept: their indexes among the unpruned visual tokens, ascending; None until chosen.
    """

    layer_idx: int
    count: int
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be computed for one request: layer bits and visual-token selections.

    Attributes:
        runs: one bit per decoder layer; False is never computed and holds no KV.
        selections: ascending by layer; counts never grow.
        choice_flops: what choosing cost (router network, recomputed attention rows).
        router: identity of the router whose scores were used, if any.
    """

    strategy: str
    num_visual: int
    runs: tuple[bool, ...]
    selections: tuple[Selection, ...] = ()
    choice_flops: int = 0
    router: str | None = None

    @classmethod
    def dense(cls, *, num_layers: int, num_visual: int) -> Plan:
        return cls(strategy="none", num_visual=num_visual, runs=(True,) * num_layers)

    @property
    def num_layers_run(self) -> int:
        return sum(self.runs)

    @property
    def skipped_layers(self) -> tuple[int, ...]:
        return tuple(idx for idx, runs in enumerate(self.runs) if not runs)

    @property
    def num_kept(self) -> int:
        return self.selections[-1].count if self.selections else self.num_visual

    @property
    def kept(self) -> tuple[int, ...] | None:
        return self.selections[-1].kept if self.selections else tuple(range(self.num_visual))

    @property
    def last_selection_layer(self) -> int:
        return self.selections[-1].layer_idx if self.selections else 0

    @property
    def is_dense(self) -> bool:
        return all(self.runs) and self.num_kept == self.num_visual

    def visual_rows(self, layer_idx: int) -> int:
        """Visual rows that enter decoder layer `layer_idx`."""
        count = self.num_visual
        for selection in self.selections:
            if selection.layer_idx <= layer_idx:
                count = selection.count
        return count


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """FLOPs and KV bytes of one request under a plan, beside the dense counterfactual."""

    dense_prefill: int
    dense_decode: int
    executed_prefill: int
    executed_decode: int
    token_plan: int
    router: int
    kv_bytes: int
    dense_kv_bytes: int
    num_kept: int
    num_layers_run: int

    @property
    def dense(self) -> int:
        return self.dense_prefill + self.dense_decode

    @property
    def executed(self) -> int:
        return self.executed_prefill + self.executed_decode + self.router

    @property
    def saved(self) -> int:
        return self.dense - self.executed

    @property
    def saved_by_tokens(self) -> int:
        return self.dense - self.token_plan

    @property
    def saved_by_layers(self) -> int:
        return self.token_plan - self.executed_prefill - self.executed_decode

    @property
    def prefill_ratio(self) -> float:
        return (self.executed_prefill + self.router) / self.dense_prefill

    @property
    def total_ratio(self) -> float:
        return self.executed / self.dense


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """`temperature` 0 is greedy; `seed` None draws one."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRequest:
    """A budget form with the options that stand beside it; still to be resolved by the runner.

    Attributes:
        requested: the form as the caller wrote it, echoed in the answer.
        options: knobs of the strategy, by their field names.
    """

    form: Budget
    requested: Any
    strategy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    min_tokens: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """One admitted-or-refused unit of work.

    Attributes:
        arrival: monotonic seconds at which the service received it.
        deadline: monotonic seconds past which it ends with what it has.
        plan_only: stop once the plan is final, without generating.
    """

    id: str
    images: tuple[ImageInput, ...]
    question: str
    budget: BudgetRequest
    sampling: SamplingParams = SamplingParams()
    priority: Priority = Priority.INTERACTIVE
    tenant: str = "public"
    arrival: float = 0.0
    deadline: float | None = None
    explain: bool = False
    plan_only: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChunk:
    """Text that became final in one step; `num_tokens` generated tokens stand behind it."""

    text: str
    num_tokens: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenGrid:
    """The visual-token grid of one image, row by row."""

    rows: int
    cols: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds spent per stage; `queue` is from arrival to admission."""

    queue: float = 0.0
    encode: float = 0.0
    plan: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatResult:
    """All that can be said of a finished request; the wire answer is made from it alone."""

    request_id: str
    answer: str
    finish_reason: FinishReason
    shape: PromptShape
    num_generated: int
    plan: Plan
    cost: Cost
    budget_limit: float
    timing: Timing
    grids: tuple[TokenGrid, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyInfo:
    """What `GET /v1/models` says of one strategy."""

    name: str
    prunes_tokens: bool
    prunes_layers: bool
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a loaded model can do, for callers that must not touch it.

    Attributes:
        smallest_budget: share of dense prefill that the smallest plan costs on a typical prompt.
        visual_tokens: tokens of one image where the family fixes it, else None.
    """

    model: str
    family: str
    fingerprint: str
    geometry: ModelGeometry
    device: str
    dtype: str
    visual_tokens: int | None
    max_images: int
    router: str | None
    default_strategy: str
    strategies: tuple[StrategyInfo, ...]
    smallest_budget: float
