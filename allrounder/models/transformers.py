"""The generic adapter over transformers' image-text-to-text classes.

Registers one attention callable with the library; each layer call hands it the engine's own
function, so KV and causality stay with the engine. Knows nothing of plans.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from allrounder.core import ImageInput, ImageLayout, Message, ModelGeometry, Prompt
from allrounder.models.adapter import Attend, Rotation, TextStream
from allrounder.models.families.family import Family, ImageFeatures, PromptPositions, resized
from allrounder.models.fused import CHECK_POSITIONS, Projection, RunLayer, fused_or_plain
from allrounder.models.prompt import PromptBuilder
from allrounder.models.token_bytes import TokenBytes

ATTENTION_NAME = "allrounder"


def _engine_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    scaling: float,
    attend: Attend,
    **_: Any,
) -> tuple[Tensor, None]:
    query_RHE, key_RKE, value_RKE = (heads[0].transpose(0, 1) for heads in (query, key, value))
    output = attend(module.layer_idx, query_RHE, key_RKE, value_RKE, scaling)
    return output.view(1, *query_RHE.shape), None


def _run_plain(layer: Any, hidden_RD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
    output: Tensor = layer(
        hidden_RD[None],
        attention_mask=None,
        position_embeddings=(rotation.cos, rotation.sin),
        attend=attend,
    )
    return output[0]


class _Peeked(Exception):
    """Leaves a layer as soon as its queries and keys are there."""

    def __init__(self, query_RHE: Tensor, key_RKE: Tensor, scaling: float) -> None:
        self.query_RHE, self.key_RKE, self.scaling = query_RHE, key_RKE, scaling


class _DecodeText:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""


class TransformersAdapter:
    """A frozen model of one family, run layer by layer. Satisfies `models.adapter.Adapter`.

    The model's decoder is switched to the engine's attention; its own `generate` no longer works.
    """

    def __init__(
        self,
        *,
        name: str,
        model: PreTrainedModel,
        processor: Any,
        family: Family,
        fingerprint: str,
    ) -> None:
        AttentionInterface.register(ATTENTION_NAME, _engine_attention)
        self.name = name
        self.family = family.name
        self.fingerprint = fingerprint
        self.max_images = family.max_images
        self.position_axes = family.position_axes
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._model = model.eval().requires_grad_(False)
        self._processor = processor
        self._family = family
        self._parts = family.parts(model)
        self._parts.config._attn_implementation = ATTENTION_NAME
        self._prompts = PromptBuilder(
            processor,
            image_token=processor.image_token,
            image_token_id=model.config.image_token_id,
        )
        self._token_bytes = TokenBytes(processor.tokenizer.backend_tokenizer)
        self.geometry = _geometry(self._parts.config, model, family)
        self._plain_layers: list[RunLayer] = [
            partial(_run_plain, layer) for layer in self._parts.layers
        ]
        self._layers = self._run_layers()
        self._head = self._output_head()
        self.eos_token_ids = _eos_token_ids(model, processor)

    @property
    def _suits_fusing(self) -> bool:
        return self._model.device.type == "cpu" and self._model.dtype is torch.float32

    def _output_head(self) -> Callable[[Tensor], Tensor]:
        """Fused, unless its weights are the word embeddings, which lie as a table."""
        head, table = self._parts.head, self._parts.embed
        tied = getattr(head, "weight", None) is getattr(table, "weight", None)
        return Projection([head]) if self._suits_fusing and not tied else head

    def _run_layers(self) -> list[RunLayer]:
        plain = self._plain_layers
        if not self._suits_fusing:
            return plain
        width = self.geometry.width
        with torch.inference_mode():
            positions_PR = torch.tensor([CHECK_POSITIONS])
            rotation = self.rotate(torch.zeros(len(CHECK_POSITIONS), width), positions_PR)
            return fused_or_plain(self._parts.layers, plain, width=width, rotation=rotation)

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self._model.parameters())

    def plain_twin(self) -> PreTrainedModel:
        """A plain transformers model of the same weights, with the library's own attention.

        Parameters are shared where they lie as the library would have them. Its `generate` works;
        nothing ends an answer but the number of tokens.
        """
        shared = {
            id(parameter): parameter
            if parameter.is_contiguous()
            else nn.Parameter(parameter.contiguous(), requires_grad=False)
            for parameter in self._model.parameters()
        }
        twin: Any = copy.deepcopy(self._model, shared)
        twin.set_attn_implementation("sdpa")
        twin.generation_config.eos_token_id = None
        return twin

    @property
    def fixed_visual(self) -> int | None:
        small, large = self._layout(32, 32), self._layout(512, 256)
        return small.num_visual if small.num_visual == large.num_visual else None

    def _layout(self, width: int, height: int) -> ImageLayout:
        return self._family.layout(self._model.config, self._processor, width=width, height=height)

    def layout(self, image: ImageInput) -> ImageLayout:
        return self._layout(image.width, image.height)

    def resized(self, image: ImageInput, *, width: int, height: int) -> ImageInput:
        return resized(image, width=width, height=height)

    def prompt(self, question: str, layouts: Sequence[ImageLayout]) -> Prompt:
        return self._prompts.build(question, layouts)

    def converse(self, messages: Sequence[Message], layouts: Sequence[ImageLayout]) -> Prompt:
        return self._prompts.converse(messages, layouts)

    def encode(
        self, images: Sequence[ImageInput], *, with_facts: bool = False
    ) -> list[ImageFeatures]:
        return self._family.encode(self._model, self._processor, images, with_facts=with_facts)

    def look_flops(self, layouts: Sequence[ImageLayout]) -> int:
        vision = self.geometry.vision
        assert vision is not None, "every family names its tower"
        return sum(vision.look_flops(patches) for layout in layouts for patches in layout.tiles)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        ids = torch.tensor(list(token_ids), device=self._model.device, dtype=torch.long)
        embedded: Tensor = self._parts.embed(ids)
        return embedded

    def positions(self, prompt: Prompt, layouts: Sequence[ImageLayout]) -> PromptPositions:
        return self._family.positions(self._model, prompt, layouts)

    def rotate(self, hidden_RD: Tensor, positions_PR: Tensor) -> Rotation:
        positions = positions_PR.to(self._model.device)
        axes = positions if positions.shape[0] == 1 else positions[:, None]
        cos, sin = self._parts.rotary(hidden_RD[None], axes)
        return Rotation(cos=cos, sin=sin)

    def layer(
        self, layer_idx: int, hidden_RD: Tensor, rotation: Rotation, attend: Attend
    ) -> Tensor:
        return self._layers[layer_idx](hidden_RD, rotation, attend)

    def peek(
        self, layer_idx: int, hidden_RD: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor, float]:
        def attend(_: int, query: Tensor, key: Tensor, _value: Tensor, scaling: float) -> Tensor:
            raise _Peeked(query, key, scaling)

        try:
            self.layer(layer_idx, hidden_RD, rotation, attend)
        except _Peeked as seen:
            return seen.query_RHE, seen.key_RKE, seen.scaling
        raise AssertionError("every decoder layer attends")

    def logits(self, hidden_RD: Tensor) -> Tensor:
        logits: Tensor = self._head(self._parts.norm(hidden_RD))
        return logits.float()

    def text_stream(self) -> TextStream:
        return _DecodeText(self._processor.tokenizer.backend_tokenizer)

    def token_bytes(self, token_id: int) -> bytes:
        return self._token_bytes.of(token_id)


def _geometry(config: Any, model: PreTrainedModel, family: Family) -> ModelGeometry:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelGeometry(
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        mlp_width=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        bytes_per_value=model.dtype.itemsize,
        protected_layers=family.protected_layers(model),
        vision=family.tower(model).geometry,
    )


def _eos_token_ids(model: PreTrainedModel, processor: Any) -> frozenset[int]:
    declared: int | list[int] | None = getattr(model.generation_config, "eos_token_id", None)
    if declared is None:
        declared = processor.tokenizer.eos_token_id
    if declared is None:
        return frozenset()
    return frozenset([declared] if isinstance(declared, int) else declared)
