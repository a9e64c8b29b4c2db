"""Attention distillation: a router's token scores are fitted to the frozen model's own attention.

It costs little, as nothing is generated and no action is tried, so many more questions can be had
than preferences. The rows up to the image do not depend on the question, so they run once for all
questions about one image, and no layer behind the target's is run.

Shapes: B samples, R rows, P position axes, D width, V visual tokens, H query heads, K key heads,
E head size, Q rows of one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from allrounder.core import Plan
from allrounder.engine.execution.batch import prompt_rows
from allrounder.measure.frozen import EncodedQuestion, FrozenModel, causal_attention
from allrounder.training.attention_target import AttentionTarget
from allrounder.training.bank import ImageBank
from allrounder.training.fit import RouterSample


@dataclass(frozen=True, kw_only=True)
class DistillationSample:
    """One question and the frozen model's own attention over the V visual tokens, summing to 1."""

    image_idx: int
    question_ids: tuple[int, ...]
    target_V: Tensor


def distillation_samples(bank: ImageBank, target: AttentionTarget) -> list[DistillationSample]:
    """One for every question of the bank."""
    samples: list[DistillationSample] = []
    with tqdm(total=bank.num_questions, desc="attention", unit="question") as bar:
        for image_idx, image in enumerate(bank.images):
            asked = [bank.ask(image_idx, question) for question in image.questions]
            groups = [asked] if share_prefix(asked) else [[one] for one in asked]
            for group in groups:
                attention = question_attention(bank.frozen, group, target.layer_idx)
                for one, rows_HQV in zip(group, attention, strict=True):
                    start, count = one.prompt.question_slot
                    samples.append(
                        DistillationSample(
                            image_idx=image_idx,
                            question_ids=one.prompt.token_ids[start : start + count],
                            target_V=target.distribution(rows_HQV),
                        )
                    )
            bar.update(len(asked))
    return samples


def distillation_loss(samples: Sequence[RouterSample], tokens_BV: Tensor, _: Tensor) -> Tensor:
    """Cross-entropy of softmax(token logits) against the frozen model's attention."""
    target_BV = torch.stack([sample.target_V for sample in samples]).to(tokens_BV)
    return -(target_BV * tokens_BV.log_softmax(-1)).sum(-1).mean()


def share_prefix(asked: Sequence[EncodedQuestion]) -> bool:
    """Whether all prompts are alike up to the end of the image."""
    ends = {one.prompt.visual_rows[-1] + 1 for one in asked}
    return len({one.prompt.token_ids[: min(ends)] for one in asked}) == 1 and len(ends) == 1


@torch.inference_mode()
def question_attention(
    frozen: FrozenModel, asked: Sequence[EncodedQuestion], layer_idx: int
) -> list[Tensor]:
    """H x Q x V of each question's rows in layer `layer_idx`; the prompts share their prefix."""
    adapter = frozen.adapter
    first = asked[0]
    dense = Plan.dense(num_layers=frozen.num_layers, num_visual=len(first.visual_VD))
    shared = first.prompt.visual_rows[-1] + 1
    whole = [prompt_rows(adapter, one.prompt, one.positions, one.visual, dense) for one in asked]
    tails = [len(rows) - shared for rows in whole]
    hidden_RD = torch.cat(
        [whole[0].hidden_SD[:shared], *(rows.hidden_SD[shared:] for rows in whole)]
    )
    positions_PR = torch.cat(
        [whole[0].positions_PS[:, :shared], *(rows.positions_PS[:, shared:] for rows in whole)],
        dim=1,
    )
    rotation = adapter.rotate(hidden_RD, positions_PR)
    attention = _SharedPrefixAttention(shared, tails)
    for idx in range(layer_idx + 1):
        attention.records = idx == layer_idx
        hidden_RD = adapter.layer(idx, hidden_RD, rotation, attention)
        if idx < len(whole[0].planes):
            hidden_RD = hidden_RD.index_add(0, whole[0].visual_rows, whole[0].planes[idx])
    visual_rows = whole[0].visual_rows
    return [
        weights_HQR[:, -one.prompt.question_slot[1] :, visual_rows]
        for one, weights_HQR in zip(asked, attention.weights, strict=True)
    ]


class _SharedPrefixAttention:
    """Attention of a shared prefix, and of tails that each see the prefix and themselves."""

    def __init__(self, shared: int, tails: Sequence[int]) -> None:
        self._shared = shared
        self._tails = list(tails)
        self.records = False
        self.weights: list[Tensor] = []

    def __call__(
        self, _: int, query_RHE: Tensor, key_RKE: Tensor, value_RKE: Tensor, scaling: float
    ) -> Tensor:
        prefix = slice(0, self._shared)
        outputs = [causal_attention(query_RHE[prefix], key_RKE[prefix], value_RKE[prefix], scaling)]
        groups = query_RHE.shape[1] // key_RKE.shape[1]
        keys_HRE = key_RKE.transpose(0, 1).repeat_interleave(groups, dim=0)
        values_HRE = value_RKE.transpose(0, 1).repeat_interleave(groups, dim=0)
        queries_HRE = query_RHE.transpose(0, 1) * scaling
        at = self._shared
        for count in self._tails:
            own = slice(at, at + count)
            at += count
            far = queries_HRE[:, own] @ keys_HRE[:, prefix].transpose(1, 2)
            near = queries_HRE[:, own] @ keys_HRE[:, own].transpose(1, 2)
            future = torch.ones(count, count, dtype=torch.bool, device=near.device).triu(1)
            near = near.masked_fill(future, float("-inf"))
            weights_HQR = torch.cat([far, near], dim=-1).softmax(-1)
            if self.records:
                self.weights.append(weights_HQR)
            mixed = weights_HQR[..., : self._shared] @ values_HRE[:, prefix]
            mixed = mixed + weights_HQR[..., self._shared :] @ values_HRE[:, own]
            outputs.append(mixed.transpose(0, 1).flatten(1))
        return torch.cat(outputs)
