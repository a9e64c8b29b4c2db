"""Log-probabilities of generated tokens, emitted together with the text that they stand for.

Computed only for requests that ask. Shapes: N vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from allrounder.core import ScoredToken

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
