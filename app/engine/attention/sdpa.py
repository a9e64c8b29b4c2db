"""Attention of packed rows, request by request, through torch's scaled_dot_product_attention.

Shapes: H query heads, K key heads, R packed rows, S rows of one request, E head size, C its keys.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention


def attend_one(query_HSE: Tensor, keys_KCE: Tensor, values_KCE: Tensor, scaling: float) -> Tensor:
    """The last S of C causal positions: H x S x E. One query row needs no mask."""
    num_queries, num_keys = query_HSE.shape[1], keys_KCE.shape[1]
    whole = num_queries == num_keys and num_queries > 1
    mask = causal_lower_right(num_queries, num_keys) if 1 < num_queries < num_keys else None
    return scaled_dot_product_attention(
        query_HSE[None],
        keys_KCE[None],
        values_KCE[None],
        attn_mask=cast("Tensor | None", mask),
        is_causal=whole,
        scale=scaling,
        enable_gqa=query_HSE.shape[0] != keys_KCE.shape[0],
    )[0]


def attention_rows(query_HSE: Tensor, keys_KCE: Tensor, row_idx: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the rows `row_idx` over all C keys, H x len(row_idx) x C, in float32.

    The S query rows are the last S positions; each sees itself and what precedes it.
    """
    num_queries, num_keys = query_HSE.shape[1], keys_KCE.shape[1]
    groups = query_HSE.shape[0] // keys_KCE.shape[0]
    keys_HCE = keys_KCE.repeat_interleave(groups, dim=0)
    scores = query_HSE[:, row_idx].float() @ keys_HCE.float().transpose(1, 2) * scaling
    position = row_idx + (num_keys - num_queries)
    future = torch.arange(num_keys, device=scores.device)[None] > position[:, None]
    return scores.masked_fill(future[None], float("-inf")).softmax(-1)
