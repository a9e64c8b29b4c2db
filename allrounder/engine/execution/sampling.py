"""Logits to one token id: greedy, or temperature and nucleus sampling with a seed per request."""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

from allrounder.core import SamplingParams


class Sampler:
    """One request's sampler; repeatable for a given seed, whatever shares its batch."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self._generator = torch.Generator().manual_seed(seed)

    def next_id(self, logits_N: Tensor) -> int:
        """Choose from logits over the vocabulary (N, float32)."""
        if self._params.temperature == 0:
            return int(logits_N.argmax())
        scaled = logits_N.double().cpu() / self._params.temperature
        probabilities = scaled.softmax(-1)
        if self._params.top_p < 1:
            probabilities = _nucleus(probabilities, self._params.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _nucleus(probabilities_N: Tensor, top_p: float) -> Tensor:
    """Zero out all but the smallest set of ids whose mass reaches `top_p`."""
    ordered, index = probabilities_N.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities_N).scatter(0, index, kept)
