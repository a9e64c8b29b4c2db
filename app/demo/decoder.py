"""The packed forward of the Llama decoder, on the weights of transformers' own modules.

B rows, C context tokens (prefix and image), L text tokens, N = C + L, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from app.demo.packing import BLOCK, Packed



@dataclass(frozen=True, kw_only=True)
class TextStates:
    """Normed last states of the text, and the text's attention onto the context at one layer."""

    states_BLW: Tensor
    watched_BHLC: Tensor | None


class PackedDecoder:
    """Runs a batch of packed questions; shares its parameters with the model it was made from."""

    def __init__(self, model: LlavaForConditionalGeneration, prefix: list[int]) -> None:
        self.model = model
        self.prefix = torch.tensor(prefix)

    def __call__(
        self,
        visual: Tensor,
        kept: Tensor,
        packed: Packed,
        *,
        num_visual: int,
        skip: Collection[int] = (),
        watch: int | None = None,
    ) -> TextStates:
        """`visual` [rows, kept, width] are the visual tokens with original indexes `kept`."""
        decoder = self.model.model.language_model
        x, positions = self._embed(visual, kept, packed, num_visual)
        cos, sin = decoder.rotary_emb(x, positions)
        num_context = len(self.prefix) + visual.shape[1]
        watched = None
        for index, layer in enumerate(decoder.layers):
            if index in skip:
                continue
            x, probs = self._layer(layer, x, cos, sin, num_context, packed.mask)
            if index == watch:
                watched = probs
        return TextStates(states_BLW=decoder.norm(x[:, num_context:]), watched_BHLC=watched)

    def logits(self, states: TextStates, packed: Packed) -> Tensor:
        """Word scores at the target positions only: [targets, vocabulary]."""
        rows, columns = packed.target_at
        scores: Tensor = self.model.lm_head(states.states_BLW[rows, columns])
        return scores

    def _embed(
        self, visual: Tensor, kept: Tensor, packed: Packed, num_visual: int
    ) -> tuple[Tensor, Tensor]:
        embed = self.model.model.language_model.embed_tokens
        num_rows, num_prefix = len(visual), len(self.prefix)
        prefix = embed(self.prefix).expand(num_rows, -1, -1)
        x = torch.cat([prefix, visual, embed(packed.tokens)], dim=1)
        start = torch.arange(num_prefix).expand(num_rows, -1)
        text = packed.positions + num_prefix + num_visual
        return x, torch.cat([start, kept + num_prefix, text], dim=1)

    def _layer(
        self,
        layer: LlamaDecoderLayer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        num_context: int,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = _project(
            x, cos, sin,
            layer.input_layernorm.weight,
            attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight,
        )  # fmt: skip
        mixed, probs = _attend(q, k, v, num_context, mask)
        x = _finish(
            x, mixed,
            attention.o_proj.weight,
            layer.post_attention_layernorm.weight,
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight,
        )  # fmt: skip
        return x, probs


def _attend(
    q: Tensor, k: Tensor, v: Tensor, num_context: int, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixed values [B, N, H, D], and the text's attention onto the context [B, H, L, C]."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    context = F.scaled_dot_product_attention(
        q[:, :, :num_context], k[:, :, :num_context], v[:, :, :num_context], is_causal=True
    )
    scale = q.shape[-1] ** -0.5
    text = q[:, :, num_context:] * scale
    blocks = [t[:, :, num_context:].unflatten(2, (-1, BLOCK)) for t in (k, v)]
    far = text @ k[:, :, :num_context].mT
    near = text.unflatten(2, (-1, BLOCK)) @ blocks[0].mT + mask
    probs = torch.cat([far, near.flatten(2, 3)], dim=-1).softmax(dim=-1)
    far, near = probs[..., :num_context], probs[..., num_context:].unflatten(2, (-1, BLOCK))
    mixed = far @ v[:, :, :num_context] + (near @ blocks[1]).flatten(2, 3)
    return torch.cat([context, mixed], dim=2).transpose(1, 2), far


def _project(
    x: Tensor, cos: Tensor, sin: Tensor, norm: Tensor, wq: Tensor, wk: Tensor, wv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    width = cos.shape[-1]
    normed = F.rms_norm(x, (x.shape[-1],), norm, 1e-6)
    q, k, v = F.linear(normed, torch.cat([wq, wk, wv])).unflatten(-1, (3, -1, width)).unbind(2)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v.contiguous()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[..., :half], sin[..., :half]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _finish(
    x: Tensor, mixed: Tensor, wo: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    x = x + F.linear(mixed.flatten(2), wo)
    normed = F.rms_norm(x, (x.shape[-1],), norm, 1e-6)
    opened, value = F.linear(normed, torch.cat([gate, up])).chunk(2, dim=-1)
    return x + F.linear(F.silu(opened) * value, down)
