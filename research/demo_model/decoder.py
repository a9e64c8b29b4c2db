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

from research.demo_model.packing import BLOCK, Packed


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
        angles = positions[..., None] * decoder.rotary_emb.inv_freq
        turns = torch.polar(torch.ones_like(angles), angles)
        num_context = len(self.prefix) + visual.shape[1]
        watched = None
        for index, layer in enumerate(decoder.layers):
            if index in skip:
                continue
            x, probs = self._layer(layer, x, turns, num_context, packed.mask)
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
        turns: Tensor,
        num_context: int,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = _project(
            x, turns,
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
    parts = [num_context, q.shape[1] - num_context]
    (q_far, q_near), (k_far, k_near), (v_far, v_near) = (
        t.transpose(1, 2).split(parts, dim=2) for t in (q, k, v)
    )
    context = F.scaled_dot_product_attention(q_far, k_far, v_far, is_causal=True)
    text = q_near * q.shape[-1] ** -0.5
    far = text @ k_far.mT
    near = text.unflatten(2, (-1, BLOCK)) @ k_near.unflatten(2, (-1, BLOCK)).mT + mask
    probs = torch.cat([far, near.flatten(2, 3)], dim=-1).softmax(dim=-1)
    far, near = probs.split([num_context, BLOCK], dim=-1)
    blocks = near.unflatten(2, (-1, BLOCK)) @ v_near.unflatten(2, (-1, BLOCK))
    mixed = far @ v_far + blocks.flatten(2, 3)
    return torch.cat([context, mixed], dim=2).transpose(1, 2), far


def _project(
    x: Tensor, turns: Tensor, norm: Tensor, wq: Tensor, wk: Tensor, wv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, turned by their positions, and values: [B, N, H, D] each.

    Llama turns dimension i together with i + D / 2; queries and keys are reordered alike so that
    the two are neighbours, which leaves their products as they are and is one complex product.
    """
    half = turns.shape[-1]
    paired = torch.stack([wq, wk]).unflatten(1, (-1, 2, half)).transpose(2, 3).flatten(0, 3)
    normed = F.rms_norm(x, (x.shape[-1],), norm, 1e-6)
    joint = F.linear(normed, torch.cat([paired, wv]))
    qk, v = joint.split([len(paired), len(wv)], dim=-1)
    pairs = torch.view_as_complex(qk.unflatten(-1, (2, -1, half, 2)))
    turned = torch.view_as_real(pairs * turns[:, :, None, None]).flatten(-2)
    q, k = turned.unbind(2)
    return q, k, v.unflatten(-1, (-1, 2 * half))


def _finish(
    x: Tensor, mixed: Tensor, wo: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    x = x + F.linear(mixed.flatten(2), wo)
    normed = F.rms_norm(x, (x.shape[-1],), norm, 1e-6)
    opened, value = F.linear(normed, torch.cat([gate, up])).chunk(2, dim=-1)
    return x + F.linear(F.silu(opened) * value, down)
