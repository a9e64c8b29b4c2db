"""The meta-router: one transformer block that scores visual tokens and layers together.

Shapes: B requests, V visual tokens, Q question rows, N layer candidates, D decoder width,
W router width, M match heads, E match head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_MLP_RATIO = 4
_ROPE_THETA = 10_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig:
    """Shape of a meta-router.

    Attributes:
        model_width: D of the decoder it serves.
        candidates: decoder layers that it scores, ascending (PAR: the last half of the stack).
        width: W. The default scales with D and makes 39 M parameters at D = 4096.
        attention: `full` lets every element read all others (PAR section 4.1); `causal` is what
            the published code does.
        match_heads: M ways in which every visual token is held against every question row before
            the block, so that it can tell what the question names (after ColBERT's late
            interaction, arXiv 2004.12832, section 3.3). 0: PAR's block alone.
    """

    model_width: int
    candidates: tuple[int, ...]
    width: int
    num_heads: int
    attention: Literal["full", "causal"] = "full"
    match_heads: int = 0

    @classmethod
    def for_model(
        cls, *, model_width: int, num_layers: int, first_candidate: int | None = None
    ) -> RouterConfig:
        first = num_layers // 2 if first_candidate is None else first_candidate
        width = max(64, 3 * model_width // 8 // 64 * 64)
        return cls(
            model_width=model_width,
            candidates=tuple(range(first, num_layers)),
            width=width,
            num_heads=max(4, width // 128),
        )


def router_flops(config: RouterConfig, *, num_visual: int, num_question: int) -> int:
    """FLOPs of one forward pass, 2 per multiply-add."""
    wide, narrow = config.model_width, config.width
    rows = num_visual + num_question + len(config.candidates)
    scored = num_visual + len(config.candidates)
    projection = 2 * (num_visual + num_question) * wide * narrow
    block = 2 * rows * (4 + 2 * _MLP_RATIO) * narrow**2 + 4 * rows**2 * narrow
    heads = 2 * scored * (narrow**2 + narrow)
    return projection + block + heads + _match_flops(config, num_visual, num_question)


def _match_flops(config: RouterConfig, num_visual: int, num_question: int) -> int:
    if not config.match_heads:
        return 0
    turned = (num_visual + num_question) * config.width**2
    return 2 * (
        turned
        + num_visual * num_question * config.width
        + num_visual * config.match_heads * config.width
    )


class MetaRouter(nn.Module):
    """PAR's router (seed paper, section 4.1): [visual; question; layer embeddings] -> logits.

    Sigmoid of a logit is the probability of keeping that token or layer. One training serves any
    number of kept tokens and skipped layers: only the order of the logits matters.
    """

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.project = nn.Linear(config.model_width, width, bias=False)
        self.input_norm = nn.LayerNorm(width)
        self.types = nn.Parameter(torch.randn(3, width) * 0.02)
        self.layers = nn.Parameter(torch.randn(len(config.candidates), width) * 0.02)
        self.match = _Match(width, config.match_heads) if config.match_heads else None
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, _MLP_RATIO * width)
        self.contract = nn.Linear(_MLP_RATIO * width, width)
        self.output_norm = nn.LayerNorm(width)
        self.token_head = _head(width)
        self.layer_head = _head(width)

    def forward(
        self, visual_BVD: Tensor, question_BQD: Tensor, question_mask_BQ: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of tokens (B x V) and of candidate layers (B x N).

        Args:
            question_mask_BQ: True where a question row is real; None when all are.
        """
        num_visual, num_layers = visual_BVD.shape[1], len(self.config.candidates)
        rows = self._embed(visual_BVD, question_BQD, question_mask_BQ)
        visible = self._visible(rows, visual_BVD, question_mask_BQ)
        rows = rows + self._attend(self.attention_norm(rows), visible)
        rows = rows + self.contract(nn.functional.gelu(self.expand(self.mlp_norm(rows))))
        rows = self.output_norm(rows)
        tokens: Tensor = self.token_head(rows[:, :num_visual])[..., 0]
        layers: Tensor = self.layer_head(rows[:, -num_layers:])[..., 0]
        return tokens, layers

    def _embed(
        self, visual_BVD: Tensor, question_BQD: Tensor, question_mask_BQ: Tensor | None
    ) -> Tensor:
        batch = visual_BVD.shape[0]
        layers = self.layers.expand(batch, -1, -1)
        visual, question = self.project(visual_BVD), self.project(question_BQD)
        pieces = (visual, question, layers)
        normed = [self.input_norm(piece) for piece in pieces]
        typed = [piece + kind for piece, kind in zip(normed, self.types, strict=True)]
        if self.match is not None:
            typed[0] = typed[0] + self.match(normed[0], normed[1], question_mask_BQ)
        return torch.cat(typed, dim=1)

    def _attend(self, rows_BRW: Tensor, visible_BR: Tensor | None) -> Tensor:
        batch, num_rows, width = rows_BRW.shape
        heads = self.qkv(rows_BRW).view(batch, num_rows, 3, self.config.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        cos, sin = _rotation(_positions(rows_BRW, visible_BR), query.shape[-1], like=query)
        mixed = scaled_dot_product_attention(
            _rotate(query, cos, sin),
            _rotate(key, cos, sin),
            value,
            attn_mask=self._mask(visible_BR),
            is_causal=visible_BR is None and self.config.attention == "causal",
        )
        output: Tensor = self.mix(mixed.transpose(1, 2).reshape(batch, num_rows, width))
        return output

    def _visible(
        self, rows_BRW: Tensor, visual_BVD: Tensor, question_mask_BQ: Tensor | None
    ) -> Tensor | None:
        if question_mask_BQ is None:
            return None
        visible_BR = torch.ones(rows_BRW.shape[:2], dtype=torch.bool, device=rows_BRW.device)
        start = visual_BVD.shape[1]
        visible_BR[:, start : start + question_mask_BQ.shape[1]] = question_mask_BQ
        return visible_BR

    def _mask(self, visible_BR: Tensor | None) -> Tensor | None:
        if visible_BR is None:
            return None
        mask = visible_BR[:, None, None]
        if self.config.attention == "causal":
            num_rows = visible_BR.shape[1]
            mask = (
                mask & torch.ones(num_rows, num_rows, dtype=torch.bool, device=mask.device).tril()
            )
        return mask


class _Match(nn.Module):
    """What each visual token and the question have in common, in M respects.

    A respect is a subspace; a token's match is the log-sum-exp, over the question's rows, of their
    cosine there, sharpened by a learned scale. Both sides start with the same projection.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.visual = nn.Linear(width, width, bias=False)
        self.question = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.visual.weight)
        self.question.weight.data.copy_(self.visual.weight.data)
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), 2.0))
        self.spread = nn.Linear(num_heads, width, bias=False)

    def forward(self, visual_BVW: Tensor, question_BQW: Tensor, mask_BQ: Tensor | None) -> Tensor:
        visual_BMVE = self._heads(self.visual(visual_BVW))
        question_BMQE = self._heads(self.question(question_BQW))
        scores = self.log_scale.exp() * (visual_BMVE @ question_BMQE.transpose(2, 3))
        if mask_BQ is not None:
            scores = scores.masked_fill(~mask_BQ[:, None, None], float("-inf"))
        matches_BMV = scores.logsumexp(-1) / self.log_scale[..., 0].exp()
        added: Tensor = self.spread(matches_BMV.transpose(1, 2))
        return added

    def _heads(self, rows_BRW: Tensor) -> Tensor:
        heads_BRME = rows_BRW.unflatten(-1, (self.num_heads, -1))
        return nn.functional.normalize(heads_BRME, dim=-1).transpose(1, 2)


def _head(width: int) -> nn.Sequential:
    score = nn.Linear(width, 1)
    nn.init.zeros_(score.weight)
    nn.init.zeros_(score.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), score)


def _positions(rows_BRW: Tensor, visible_BR: Tensor | None) -> Tensor:
    """Padding takes no position, so that a padded request scores as it does alone: B x R."""
    if visible_BR is None:
        return torch.arange(rows_BRW.shape[1], device=rows_BRW.device)[None]
    return visible_BR.cumsum(1) - 1


def _rotation(positions_BR: Tensor, head_size: int, *, like: Tensor) -> tuple[Tensor, Tensor]:
    frequency = _ROPE_THETA ** (-torch.arange(0, head_size, 2, device=like.device) / head_size)
    angle = (positions_BR[:, None, :, None] * frequency).float()
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
