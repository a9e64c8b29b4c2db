"""What a pruning strategy is: a frozen dataclass whose fields are its knobs.

A strategy sees a request only through `View`: embedded rows, one layer's recomputed attention rows,
the router's scores, and calibration. It never sees the model, the batch, or another request.

Shapes: V visual tokens, C of them that reach a selection point, K that go on, Q text rows after the
image, N layer candidates, H heads, S probed rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from allrounder.core import ModelGeometry, PromptShape, TokenGrid
from allrounder.errors import InvalidField
from allrounder.pruning.vision_facts import VisionFeatures


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterScores:
    """The meta-router's logits: one per visual token (V) and one per candidate layer (N)."""

    token_logits: Tensor
    layer_logits: Tensor


Points = tuple[tuple[int, int], ...]
"""(layer, visual rows that go on from its input), ascending by layer; counts never grow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A wish to see attention of `layer_idx` to the visual rows.

    Attributes:
        rows: from the last prompt row, all text rows, or the text rows after the last image.
        ahead: at a selection point of that very layer, before it runs: its input norm and
            projections are computed for the rows that arrive, and again when it runs.
    """

    layer_idx: int
    rows: Literal["last", "text", "question"]
    ahead: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What is known of a model before any request: geometry, candidates, calibration.

    Attributes:
        router_candidates: layers that the router scores, ascending; None without a router.
        block_influence: 1 - cosine of each layer's input and output; None if not calibrated.
        position_axes: of the rotary embedding; several where images have rows and columns.
        fixed_visual: visual tokens of every image, where they do not depend on its size.
    """

    geometry: ModelGeometry
    router_candidates: tuple[int, ...] | None = None
    block_influence: tuple[float, ...] | None = None
    position_axes: int = 1
    fixed_visual: int | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What becomes of the visual rows that reach a selection point.

    Attributes:
        rows: K indexes among the unpruned visual tokens, ascending: the rows that go on, each at
            its own rotary position.
        weights: K x C; a row that goes on becomes this sum of the rows that arrive. None where
            nothing is merged.
    """

    rows: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """The visual rows that reach a selection point past layer 0.

    Attributes:
        rows_C: their indexes among the unpruned visual tokens, ascending.
        hidden_CD: their hidden states at the input of `layer_idx`.
    """

    layer_idx: int
    rows_C: Tensor
    hidden_CD: Tensor


@dataclass(frozen=True, kw_only=True)
class View:
    """One request as its strategy may see it at a selection point.

    Attributes:
        visual_VD: projected visual tokens, unpruned.
        question_QD: word embeddings of the question: the text after the last image, or the user's
            last words where they stand before it.
        visual_per_image: visual tokens of each image; empty where there is one.
        grids: which of each image's tokens show it whole, row by row; empty where unknown.
        vision: facts of the vision tower; only for strategies that need them.
        cls_attention_V: the class token's attention among them, mean over the heads; None without
            facts, and in towers that have no class token.
        arrival: what reaches the point; None before prefill, where every token does.
        attention: layer index -> H x S x C attention of the probed rows over the visual rows that
            arrive, normalised over all keys; only layers probed since the last selection.
        seed: of this request, stable across repeats.
    """

    context: Context
    visual_VD: Tensor
    question_QD: Tensor
    seed: int
    router: RouterScores | None = None
    visual_per_image: tuple[int, ...] = ()
    grids: tuple[TokenGrid, ...] = ()
    vision: VisionFeatures | None = None
    cls_attention_V: Tensor | None = None
    arrival: Arrival | None = None
    attention: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def layer_idx(self) -> int:
        return self.arrival.layer_idx if self.arrival else 0

    @property
    def arriving(self) -> Tensor:
        """C indexes among the unpruned visual tokens of the rows that arrive, ascending."""
        if self.arrival is not None:
            return self.arrival.rows_C
        return torch.arange(len(self.visual_VD), device=self.visual_VD.device)

    @property
    def hidden_CD(self) -> Tensor:
        """Hidden states of the rows that arrive; before prefill the projected tokens."""
        return self.arrival.hidden_CD if self.arrival else self.visual_VD


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Base of all strategies; a subclass overrides what it prunes.

    A token strategy names its selection layer, or a schedule of several, and implements `select` or
    `choose`; a layer strategy names its candidates and implements `skip`.
    """

    name: ClassVar[str] = "none"
    prunes_tokens: ClassVar[bool] = False
    prunes_layers: ClassVar[bool] = False
    needs_router: ClassVar[bool] = False
    needs_vision: ClassVar[bool] = False
    """Whether `View.vision` must be there: the tower's layer is then looked at for this request."""
    resizes: ClassVar[bool] = False
    """Whether the picture is made smaller instead of dropping tokens."""
    splits_numbers: ClassVar[bool] = True
    """Whether a plain number may be split between tokens and layers by this strategy."""
    calibrated: ClassVar[bool] = False
    """Whether a router's calibration was measured on this strategy's own choices."""

    @property
    def token_part(self) -> Strategy | None:
        return self if self.prunes_tokens else None

    @property
    def layer_part(self) -> Strategy | None:
        return self if self.prunes_layers else None

    def selection_layer(self) -> int:
        """The decoder layer at whose input visual rows are dropped."""
        return 0

    def schedule(self, geometry: ModelGeometry, num_visual: int, count: int) -> Points:
        """When visual rows leave, and how many go on, if `count` survive the last point.

        Monotone in `count`. Of an adaptive strategy the costliest schedule that it may turn to, and
        `count` may only bound what survives.
        """
        return ((self.selection_layer(), count),)

    @property
    def adapts(self) -> bool:
        """Whether `reschedule` may change counts."""
        return False

    def reschedule(self, view: View, count: int, remaining: Points) -> Points:
        """The counts of this point and those to come, once the strategy has looked.

        Args:
            count: what `schedule` was asked for.
            remaining: as planned so far, this point first; layers stay.
        """
        return remaining

    @property
    def merges(self) -> bool:
        """Whether `choose` may give weights."""
        return False

    def merge_flops(
        self, geometry: ModelGeometry, *, layer_idx: int, arriving: int, count: int
    ) -> int:
        """At most what merging costs at a point (2 per multiply-add)."""
        return 2 * count * arriving * geometry.width if self.merges else 0

    @property
    def renumbers(self) -> bool:
        """Whether rows that go on are numbered anew from their selection point on."""
        return False

    def probes(self, geometry: ModelGeometry) -> tuple[Probe, ...]:
        return ()

    def candidates(self, context: Context) -> tuple[int, ...]:
        """Layers that may be skipped, ascending."""
        return ()

    def check(self, context: Context) -> None:
        """Raise InvalidField when this model cannot serve the strategy."""

    def select(self, view: View, count: int) -> Tensor:
        """Indexes of the `count` visual tokens to keep, ascending."""
        raise AssertionError(f"{self.name} selects no tokens")

    def choose(self, view: View, count: int) -> Choice:
        """The `count` rows that go on; one that merges overrides this, others `select`."""
        return Choice(rows=self.select(view, count))

    def choice_flops(self, geometry: ModelGeometry, shape: PromptShape, count: int) -> int:
        """What choosing `count` tokens costs beside probes, merging and the look at the tower.

        At most: two per multiply-add of a matrix, one per element of a greedy loop's vectors.
        """
        return 0

    def skip(self, view: View, allowed: tuple[int, ...], count: int) -> tuple[int, ...]:
        """The `count` layers of `allowed` to skip."""
        raise AssertionError(f"{self.name} skips no layers")

    def knobs(self) -> dict[str, Any]:
        return {knob.name: getattr(self, knob.name) for knob in fields(self)}


def keep_best(scores_V: Tensor, count: int) -> Tensor:
    """Indexes of the `count` highest scores, ascending; ties go to the lower index."""
    order = torch.argsort(scores_V.float(), descending=True, stable=True)
    return order[:count].sort().values


def looking_flops(
    strategy: Strategy, geometry: ModelGeometry, shape: PromptShape, points: Points
) -> int:
    """FLOPs of probes, choosing and merging when `points` are the plan (2 per multiply-add).

    A probed row meets every row there is; a layer probed ahead projects them once more.
    """
    heads = geometry.num_heads * geometry.head_dim
    kv_heads = geometry.num_kv_heads * geometry.head_dim
    probed = {"last": 1, "text": shape.num_text, "question": shape.num_question}
    total = 0
    for probe in strategy.probes(geometry):
        before = [count for layer, count in points if layer < probe.layer_idx + (not probe.ahead)]
        rows = shape.num_text + (before[-1] if before else shape.num_visual)
        total += 2 * probed[probe.rows] * rows * heads
        if probe.ahead:
            total += 2 * rows * geometry.width * (heads + 2 * kv_heads)
    total += strategy.choice_flops(geometry, shape, points[-1][1])
    arriving = shape.num_visual
    for layer_idx, count in points:
        total += strategy.merge_flops(geometry, layer_idx=layer_idx, arriving=arriving, count=count)
        arriving = count
    return total


def check_renumber(strategy: Strategy, context: Context) -> None:
    """Raise InvalidField where rows cannot be numbered anew."""
    if strategy.renumbers and context.position_axes > 1:
        message = f"this model's positions have {context.position_axes} axes: no renumbering"
        raise refuse("options.renumber", message)


def refuse(field_name: str, message: str) -> InvalidField:
    return InvalidField(message, param=f"budget.{field_name}")


@dataclass(frozen=True, kw_only=True)
class Composed(Strategy):
    """`left+right`: tokens by `left`, layers by `right`; both are asked by way of their parts."""

    left: Strategy
    right: Strategy

    @property
    def label(self) -> str:
        return f"{self.left.name}+{self.right.name}"

    @property
    def token_part(self) -> Strategy | None:
        return self.left

    @property
    def layer_part(self) -> Strategy | None:
        return self.right

    def candidates(self, context: Context) -> tuple[int, ...]:
        return self.right.candidates(context)

    def check(self, context: Context) -> None:
        self.left.check(context)
        self.right.check(context)

    def knobs(self) -> dict[str, Any]:
        return {**self.left.knobs(), **self.right.knobs()}


def needs_router(strategy: Strategy) -> bool:
    parts = (strategy.token_part, strategy.layer_part)
    return any(part is not None and part.needs_router for part in parts)


def is_calibrated(strategy: Strategy) -> bool:
    """Whether a router's calibration speaks of these plans; of no pruning it always does."""
    parts = (strategy.token_part, strategy.layer_part)
    return all(part is None or part.calibrated for part in parts)


def label(strategy: Strategy) -> str:
    return strategy.label if isinstance(strategy, Composed) else strategy.name
