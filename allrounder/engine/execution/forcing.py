"""Teacher forcing through the runner itself: what a served plan says of each token of an answer.

A recorder takes the sampler's place in a begun request, so prompt, selections, merges and decoding
are those that are served. Shapes: T answer tokens, N vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from allrounder.core import SamplingParams
from allrounder.engine.execution.sampling import Sampler
from allrounder.engine.execution.sequence import Sequence
from allrounder.engine.protocols import Running


class Recorder(Sampler):
    """Greedy, or made to say `forced`; keeps the log-probabilities behind every token.

    Attributes:
        greedy_ids: the likeliest token of each step, said or not.
    """

    def __init__(self, forced: Many[int] = ()) -> None:
        super().__init__(SamplingParams())
        self._forced = tuple(forced)
        self._steps: list[Tensor] = []
        self.greedy_ids: list[int] = []

    def next_id(self, logits_N: Tensor) -> int:
        self._steps.append(logits_N.float().log_softmax(-1).cpu())
        self.greedy_ids.append(int(logits_N.argmax()))
        return self._forced[len(self._steps) - 1] if self._forced else self.greedy_ids[-1]

    @property
    def log_probs_TN(self) -> Tensor:
        return torch.stack(self._steps)

    @property
    def agrees(self) -> bool:
        """Whether greedy decoding would have said what was forced."""
        return tuple(self.greedy_ids) == self._forced

    def put_in(self, running: Running) -> None:
        """Before the first step of a request that a `ModelRunner` has begun."""
        assert isinstance(running, Sequence), "only a model's own requests have logits"
        running.sampler = self


def kl_nats(dense_TN: Tensor, pruned_TN: Tensor) -> float:
    """KL(dense || pruned) of log-probabilities, mean over the answer's tokens."""
    kl_T = kl_div(pruned_TN, dense_TN, reduction="none", log_target=True).sum(-1)
    return max(float(kl_T.mean()), 0.0)
