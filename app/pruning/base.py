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

from app.core import ModelGeometry, PromptShape
from app.errors import InvalidField


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterScores:
    """The meta-router's logits: one per visual token (V) and one per candidate layer (N)."""

    token_logits: Tensor
    layer_logits: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A wish to see attention of `layer_idx`: from the last prompt row, or all text rows."""

    layer_idx: int
    rows: Literal["last", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What is known of a model before any request: geometry, candidates, calibration.

    Attributes:
        router_candidates: layers that the router scores, ascending; None without a router.
        block_influence: 1 - cosine of each layer's input and output; None if not calibrated.
    """

    geometry: ModelGeometry
    router_candidates: tuple[int, ...] | None = None
    block_influence: tuple[float, ...] | None = None


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
class View:
    """One request as its strategy may see it at a selection point.

    Attributes:
        visual_VD: projected visual tokens, unpruned.
        question_QD: word embeddings of the text after the image.
        attention: layer index -> H x S x V attention of the probed rows over visual keys,
            normalised over all keys; only layers that were probed.
        seed: of this request, stable across repeats.
    """

    context: Context
    visual_VD: Tensor
    question_QD: Tensor
    seed: int
    router: RouterScores | None = None
    attention: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Base of all strategies; a subclass overrides what it prunes.

    A token strategy names its selection layer and implements `select`; a layer strategy names its
    candidates and implements `skip`. Counts are given, never chosen here.
    """

    name: ClassVar[str] = "none"
    prunes_tokens: ClassVar[bool] = False
    prunes_layers: ClassVar[bool] = False
    needs_router: ClassVar[bool] = False
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

    def probes(self) -> tuple[Probe, ...]:
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

    def skip(self, view: View, allowed: tuple[int, ...], count: int) -> tuple[int, ...]:
        """The `count` layers of `allowed` to skip."""
        raise AssertionError(f"{self.name} skips no layers")

    def knobs(self) -> dict[str, Any]:
        return {knob.name: getattr(self, knob.name) for knob in fields(self)}


def keep_best(scores_V: Tensor, count: int) -> Tensor:
    """Indexes of the `count` highest scores, ascending; ties go to the lower index."""
    order = torch.argsort(scores_V.float(), descending=True, stable=True)
    return order[:count].sort().values


def probe_flops(
    geometry: ModelGeometry, shape: PromptShape, probes: tuple[Probe, ...], *, num_rows: int
) -> int:
    """q.k products recomputed for probed rows over `num_rows` keys (2 per multiply-add)."""
    width = geometry.num_heads * geometry.head_dim
    rows = {"last": 1, "text": shape.num_text}
    return sum(2 * rows[probe.rows] * num_rows * width for probe in probes)


def refuse(field_name: str, message: str) -> InvalidField:
    return InvalidField(message, param=f"budget.{field_name}")
