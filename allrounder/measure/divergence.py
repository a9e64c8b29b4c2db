"""Divergence of a pruned model from the dense one, teacher-forced on the dense answer.

Here through the runner: a recorder takes the sampler's place in a begun request, so prompt,
selections, merges and decoding are those that are served. `frozen` measures given plans in packed
passes instead, without a request for each.

Shapes: T answer tokens, N vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from allrounder.core import ChatRequest, ChatResult, SamplingParams
from allrounder.engine.execution.sampling import Sampler
from allrounder.engine.execution.sequence import Sequence
from allrounder.engine.offline import drive
from allrounder.engine.protocols import Runner, Running


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What a plan changes of one answer.

    Attributes:
        kl_nats: KL(dense || pruned), mean over the answer's tokens.
        agrees: greedy decoding under the plan gives the dense answer.
    """

    kl_nats: float
    agrees: bool

    @classmethod
    def between(cls, dense_TN: Tensor, pruned_TN: Tensor, *, agrees: bool) -> Divergence:
        """Of log-probabilities behind the same forced tokens."""
        kl_T = kl_div(pruned_TN, dense_TN, reduction="none", log_target=True).sum(-1)
        return cls(kl_nats=max(float(kl_T.mean()), 0.0), agrees=agrees)


@dataclass(frozen=True, kw_only=True)
class DenseReference:
    """The unpruned model's served answer, with the T x N log-probabilities behind its tokens."""

    result: ChatResult
    token_ids: tuple[int, ...]
    log_probs_TN: Tensor


def answer_dense(runner: Runner, requests: Many[ChatRequest]) -> list[DenseReference]:
    """References of requests whose budget is the whole; decoded together."""
    recorders = [_Recorder() for _ in requests]
    return [
        DenseReference(
            result=result,
            token_ids=tuple(recorder.greedy_ids),
            log_probs_TN=recorder.log_probs_TN,
        )
        for result, recorder in zip(_record(runner, requests, recorders), recorders, strict=True)
    ]


def force(
    runner: Runner, requests: Many[ChatRequest], references: Many[DenseReference]
) -> list[tuple[ChatResult, Divergence]]:
    """Serve the requests with the references' answers forced.

    Returns:
        By request, the result, which holds the reference's text, and the divergence. Where that
        says that the answers agree, it is the result that the request would have had unforced.
    """
    recorders = [_Recorder(forced=each.token_ids) for each in references]
    results = _record(runner, requests, recorders)
    return [
        (
            result,
            Divergence.between(
                reference.log_probs_TN, recorder.log_probs_TN, agrees=recorder.agrees
            ),
        )
        for result, reference, recorder in zip(results, references, recorders, strict=True)
    ]


class _Recorder(Sampler):
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


def _record(
    runner: Runner, requests: Many[ChatRequest], recorders: Many[_Recorder]
) -> list[ChatResult]:
    by_id = {request.id: recorder for request, recorder in zip(requests, recorders, strict=True)}

    def put_in(running: Running) -> None:
        assert isinstance(running, Sequence), "only a model's own requests have logits"
        running.sampler = by_id[running.request.id]

    return list(drive(runner, requests, on_begun=put_in).results)
