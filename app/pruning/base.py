"""What a pruning strategy is: a frozen dataclass whose fields are its knobs.

A strategy sees a request only through `View`: embedded rows, one layer's recomputed attention rows,
the router's scores, and calibration. It never sees the model, the batch, or another request.

Shapes: V visual tokens, C of them that reach a selection point, K that go on, Q text rows after the
image, N layer candidates, H heads, S probed rows, D width; of the vision tower E the width of its
keys and F that of its patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from app.core import ModelGeometry, PromptShape, TokenGrid
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
class VisionFeatures:
    """What a layer of the vision tower shows of each visual token; line ends of a picture are zero.

    Attributes:
        attention_HV: how much the class token attends to each token or, in towers without one, how
            much all patches do on average.
        keys_VE: that layer's keys, all heads side by side.
        features_VF: patch features before the projector.
    """

    attention_HV: Tensor
    keys_VE: Tensor
    features_VF: Tensor

    @property
    def head_keys(self) -> Tensor:
        """Keys averaged over the heads: V x head width."""
        num_heads = len(self.attention_HV)
        keys_VHE: Tensor = self.keys_VE.float().unflatten(-1, (num_heads, -1))
        return keys_VHE.mean(-2)


@dataclass(frozen=True, kw_only=True)
class View:
    """One request as its strategy may see it at a selection point.

    Attributes:
        visual_VD: projected visual tokens, unpruned.
        question_QD: word embeddings of the text after the image.
        attention: layer index -> H x S x V attention of the probed rows over visual keys,
            normalised over all keys; only layers that were probed.
        seed: of this request, stable across repeats.
        visual_per_image: visual tokens of each image; empty where there is one.
        grids: which of each image's tokens show it whole, row by row; empty where unknown.
        vision: of the tower; only for strategies that need it.
        cls_attention_V: the vision features' attention, mean over the heads.
    """

    context: Context
    visual_VD: Tensor
    question_QD: Tensor
    seed: int
    router: RouterScores | None = None
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    visual_per_image: tuple[int, ...] = ()
    grids: tuple[TokenGrid, ...] = ()
    vision: VisionFeatures | None = None
    cls_attention_V: Tensor | None = None


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
    needs_vision: ClassVar[bool] = False
    """Whether `View.vision` must be there: the tower's layer is then looked at for this request."""
    splits_numbers: ClassVar[bool] = True
    """Whether a plain number may be split between tokens and layers by this strategy."""

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

    def choice_flops(self, geometry: ModelGeometry, shape: PromptShape, count: int) -> int:
        """What choosing `count` tokens costs, probes, the router and the look at the tower apart.

        At most: two per multiply-add of a matrix, one per element of a greedy loop's vectors.
        """
        return 0

    @property
    def merges(self) -> bool:
        """Whether `choose` may give weights."""
        return False

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
