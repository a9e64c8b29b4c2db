"""The contract between the engine and a frozen LVLM.

Shapes: R packed rows, P position axes, D width, V visual tokens, H heads, K key heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from allrounder.core import ImageInput, ImageLayout, Message, ModelGeometry, Prompt
from allrounder.models.families.family import ImageFeatures, PromptPositions

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer_idx, q RxHxE, k RxKxE, v RxKxE, scaling) -> R x H*E, causality included."""


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Rotary cosines and sines of R packed rows, each 1 x R x E."""

    cos: Tensor
    sin: Tensor

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines, and sines of the lower and upper half of a head, each R x 1 x (E or E/2)."""
        half = self.sin.shape[-1] // 2
        sin = self.sin[0, :, None]
        return self.cos[0, :, None], sin[..., :half], sin[..., half:]

    def rows(self, index: Tensor) -> Rotation:
        return Rotation(cos=self.cos[:, index], sin=self.sin[:, index])

    def part(self, rows: slice) -> Rotation:
        return Rotation(cos=self.cos[:, rows], sin=self.sin[:, rows])


class TextStream(Protocol):
    """Incremental detokenisation: ids in, text out once it is certain."""

    def push(self, token_id: int) -> str: ...


class Adapter(Protocol):
    """A loaded LVLM. `geometry`, `layout` and `prompt` may be used from any thread.

    Attributes:
        max_images: images that one request may bring, where the family limits it.
        position_axes: of the rotary embedding; several where images have rows and columns.
    """

    name: str
    family: str
    fingerprint: str
    geometry: ModelGeometry
    device: str
    dtype: str
    eos_token_ids: frozenset[int]
    max_images: int | None
    position_axes: int

    @property
    def fixed_visual(self) -> int | None:
        """Visual tokens of every image where the family fixes it, else None."""
        ...

    def layout(self, image: ImageInput) -> ImageLayout: ...

    def resized(self, image: ImageInput, *, width: int, height: int) -> ImageInput:
        """The picture scaled to that size."""
        ...

    def prompt(self, question: str, layouts: Sequence[ImageLayout]) -> Prompt:
        """One user message, images first, through the model's own chat template."""
        ...

    def converse(self, messages: Sequence[Message], layouts: Sequence[ImageLayout]) -> Prompt:
        """A conversation through the template; its images, in order, have these layouts.

        Raises InvalidField naming what the template does not know.
        """
        ...

    def encode(
        self, images: Sequence[ImageInput], *, with_facts: bool = False
    ) -> list[ImageFeatures]:
        """Projected visual tokens of each image; one batch, never pruned.

        With facts, the same tokens and what the vision tower showed of them.
        """
        ...

    def look_flops(self, layouts: Sequence[ImageLayout]) -> int:
        """What looking at the vision tower costs beside encoding these images."""
        ...

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Word embeddings, R x D."""
        ...

    def positions(self, prompt: Prompt, layouts: Sequence[ImageLayout]) -> PromptPositions: ...

    def rotate(self, hidden_RD: Tensor, positions_PR: Tensor) -> Rotation: ...

    def layer(
        self, layer_idx: int, hidden_RD: Tensor, rotation: Rotation, attend: Attend
    ) -> Tensor:
        """One decoder layer over packed rows; `attend` owns KV and causality."""
        ...

    def peek(
        self, layer_idx: int, hidden_RD: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor, float]:
        """Queries R x H x E, keys R x K x E and scaling of a layer that is not run."""
        ...

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Final norm and output head: R x vocabulary, float32."""
        ...

    def text_stream(self) -> TextStream: ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; a part of a character too."""
        ...
