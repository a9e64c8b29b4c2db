"""Attention of requests with equally many rows, through torch's scaled_dot_product_attention.

Shapes: B requests, H query heads, K key heads, S rows of each request, C its keys, E head size.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

_MUCH = 1 << 19


def attend(query_BHSE: Tensor, keys_BKCE: Tensor, values_BKCE: Tensor, scaling: float) -> Tensor:
    """The last S of C causal positions: B x H x S x E. One query row needs no mask."""
    num_queries, num_keys = query_BHSE.shape[2], keys_BKCE.shape[2]
    if num_queries == 1 and _suits_matmul(query_BHSE, keys_BKCE):
        return _attend_one_row(query_BHSE, keys_BKCE, values_BKCE, scaling)
    whole = num_queries == num_keys and num_queries > 1
    mask = causal_lower_right(num_queries, num_keys) if 1 < num_queries < num_keys else None
    return scaled_dot_product_attention(
        query_BHSE,
        keys_BKCE,
        values_BKCE,
        attn_mask=cast("Tensor | None", mask),
        is_causal=whole,
        scale=scaling,
        enable_gqa=query_BHSE.shape[1] != keys_BKCE.shape[1],
    )


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


def _suits_matmul(query_BHSE: Tensor, keys_BKCE: Tensor) -> bool:
    """On CPU torch's flash kernel reads shared or very many keys slower than a batched product."""
    if keys_BKCE.device.type != "cpu":
        return False
    return query_BHSE.shape[1] != keys_BKCE.shape[1] or keys_BKCE.numel() >= _MUCH


def _attend_one_row(
    query_BHSE: Tensor, keys_BKCE: Tensor, values_BKCE: Tensor, scaling: float
) -> Tensor:
    size, heads, _, width = query_BHSE.shape
    grouped_BKGE = (query_BHSE * scaling).view(size, keys_BKCE.shape[1], -1, width)
    weights = (grouped_BKGE @ keys_BKCE.transpose(2, 3)).softmax(-1)
    return (weights @ values_BKCE).view(size, heads, 1, width)
