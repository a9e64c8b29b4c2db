"""Logits to tokens: greedy, or temperature and nucleus sampling with a seed per request; scores.

Log-probabilities are computed only for requests that ask, and emitted together with the text that
they stand for. Shapes: N vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import torch
from torch import Tensor

from allrounder.core import SamplingParams, ScoredToken
from allrounder.models.adapter import TextStream


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


TokenBytesOf = Callable[[int], bytes]


class Scores:
    """The tokens of one answer; those whose text may still turn into a stop string are held back.

    Args:
        num_top: how many of the likeliest tokens are given at each step.
    """

    def __init__(self, num_top: int, bytes_of: TokenBytesOf) -> None:
        self._num_top = num_top
        self._bytes_of = bytes_of
        self._tokens: list[ScoredToken] = []
        self._ends: list[int] = []
        self._num_emitted = 0

    @property
    def tokens(self) -> tuple[ScoredToken, ...]:
        return tuple(self._tokens)

    def push(self, token_id: int, logits_N: Tensor, *, num_chars: int) -> None:
        """`logits_N` as the model gave them; with this token the answer has `num_chars`."""
        log_probs_N = logits_N.float().log_softmax(-1)
        best = log_probs_N.topk(min(self._num_top, len(log_probs_N)))
        top = tuple(
            ScoredToken(content=self._bytes_of(idx), logprob=logprob)
            for idx, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        own = ScoredToken(
            content=self._bytes_of(token_id), logprob=float(log_probs_N[token_id]), top=top
        )
        self._tokens.append(own)
        self._ends.append(num_chars)

    def cut(self, num_chars: int) -> None:
        """The answer ends at a stop string: tokens that begin behind it are not part of it."""
        starts = [0, *self._ends[:-1]]
        count = max(self._num_emitted, sum(start < num_chars for start in starts))
        del self._tokens[count:], self._ends[count:]

    def emitted(self, num_final: int) -> tuple[ScoredToken, ...]:
        """Those, not emitted before, whose text lies within the first `num_final` characters."""
        start = self._num_emitted
        while self._num_emitted < len(self._ends) and self._ends[self._num_emitted] <= num_final:
            self._num_emitted += 1
        return tuple(self._tokens[start : self._num_emitted])

    def rest(self) -> tuple[ScoredToken, ...]:
        """The answer has ended: all that is left."""
        start, self._num_emitted = self._num_emitted, len(self._tokens)
        return tuple(self._tokens[start:])


class AnswerText:
    """Collects one answer; text that may still turn into a stop string is held back."""

    def __init__(self, stream: TextStream, stop: tuple[str, ...]) -> None:
        self._stream = stream
        self._stop = stop
        self._text = ""
        self._num_sent = 0
        self.stopped = False

    @property
    def text(self) -> str:
        return self._text

    @property
    def num_final(self) -> int:
        """Characters that were handed out."""
        return self._num_sent

    def push(self, token_id: int) -> str:
        """Add one id; returns the text that became final."""
        added = self._stream.push(token_id)
        self._text += added if self._text else added.lstrip()
        cut = self._first_stop()
        if cut is not None:
            self._text = self._text[:cut]
            self.stopped = True
        return self._release(0 if self.stopped else self._num_pending())

    def flush(self) -> str:
        """The request ends: everything held back is final now."""
        return self._release(0)

    def _release(self, num_held: int) -> str:
        end = len(self._text) - num_held
        ready = self._text[self._num_sent : end]
        self._num_sent = max(self._num_sent, end)
        return ready

    def _first_stop(self) -> int | None:
        found = [at for at in (self._text.find(stop) for stop in self._stop) if at >= 0]
        return min(found, default=None)

    def _num_pending(self) -> int:
        """Length of the longest tail that begins some stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stop):
                return length
        return 0
