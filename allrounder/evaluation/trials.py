"""Runs one setting over items through an engine runner: answers, KL per item, mean costs.

Answers come in mixed batches. Where the teacher-forced pass shows that greedy decoding gives the
dense answer too, that pass is the item's answer, and nothing is decoded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from allrounder.core import ChatRequest, ChatResult, ModelGeometry, SamplingParams
from allrounder.engine.offline import drive
from allrounder.engine.protocols import Runner
from allrounder.evaluation.benchmark import Item
from allrounder.evaluation.grid import DENSE, WHOLE, Contender, Setting
from allrounder.evaluation.paper_flops import par_paper_ratio
from allrounder.measure.divergence import DenseReference, answer_dense, force
from allrounder.measure.statistics import mean, turns

MAX_TOKENS = 32
_BATCH_VISUAL = 12_544
_MAX_BATCH = 64
_TYPICAL_VISUAL = 576
_KEPT_BYTES = 1 << 30

Tick = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one setting gave, item by item, and its mean costs as shares of dense.

    Attributes:
        kl_nats: KL(dense || pruned) per answer token of each item; None where not measured.
    """

    answers: tuple[str, ...]
    kl_nats: tuple[float, ...] | None
    costs: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Trial:
        kl_nats = found["kl_nats"]
        return cls(
            answers=tuple(found["answers"]),
            kl_nats=None if kl_nats is None else tuple(kl_nats),
            costs=found["costs"],
        )


class DenseAnswers:
    """References of items, made when they are first asked for and kept within `max_bytes`."""

    def __init__(
        self, runner: Runner, items: Sequence[Item], *, max_bytes: int = _KEPT_BYTES
    ) -> None:
        self._runner = runner
        self._items = items
        self._room = max_bytes
        self._kept: dict[int, DenseReference] = {}
        self._setting = Setting(
            contender=Contender(label=DENSE, strategy=DENSE), budget=WHOLE, num_items=len(items)
        )

    def of(self, batch: range) -> list[DenseReference]:
        missing = [idx for idx in batch if idx not in self._kept]
        requests = [_request(self._items[idx], self._setting, idx) for idx in missing]
        found = answer_dense(self._runner, requests) if missing else []
        made = dict(zip(missing, found, strict=True))
        for idx, reference in made.items():
            size = reference.log_probs_TN.nbytes
            if size <= self._room:
                self._kept[idx] = reference
                self._room -= size
        return [self._kept.get(idx) or made[idx] for idx in batch]


def run_setting(
    runner: Runner,
    items: Sequence[Item],
    setting: Setting,
    *,
    reference: DenseAnswers | None = None,
    tick: Tick = lambda _: None,
) -> Trial:
    """Answer every item; KL is measured where there is a reference.

    Raises InvalidField where the strategy cannot serve the budget on one of the items.
    """
    results: list[ChatResult] = []
    kl_nats: list[float] = []
    for batch in _batches(len(items), runner.capabilities().visual_tokens):
        if reference is None:
            results += _plain(runner, items, setting, batch)
        elif setting.contender.strategy == DENSE:
            results += [dense.result for dense in reference.of(batch)]
            kl_nats += [0.0] * len(batch)
        else:
            found, divergences = _forced(runner, items, setting, batch, reference)
            results += found
            kl_nats += divergences
        tick(len(batch))
    return Trial(
        answers=tuple(result.answer for result in results),
        kl_nats=tuple(round(each, 7) for each in kl_nats) if reference else None,
        costs=_costs(runner.capabilities().geometry, results),
    )


def time_settings(
    runs: Sequence[tuple[Runner, Setting]], items: Sequence[Item], *, rounds: int, tick: Tick
) -> list[list[float]]:
    """Seconds from submission to answer of single requests: one list a setting, by round."""
    seconds: list[list[float]] = [[] for _ in runs]
    for round_idx, idx in turns(len(runs), num_rounds=rounds):
        runner, setting = runs[idx]
        started = time.perf_counter()
        drive(runner, [_request(items[round_idx % len(items)], setting, round_idx)])
        seconds[idx].append(time.perf_counter() - started)
        tick(1)
    return seconds


def _plain(
    runner: Runner, items: Sequence[Item], setting: Setting, batch: Sequence[int]
) -> list[ChatResult]:
    requests = [_request(items[idx], setting, idx) for idx in batch]
    return list(drive(runner, requests).results)


def _forced(
    runner: Runner,
    items: Sequence[Item],
    setting: Setting,
    batch: range,
    reference: DenseAnswers,
) -> tuple[list[ChatResult], list[float]]:
    requests = [_request(items[idx], setting, idx) for idx in batch]
    forced = force(runner, requests, reference.of(batch))
    results = [result for result, _ in forced]
    differing = [row for row, (_, divergence) in enumerate(forced) if not divergence.agrees]
    if differing:
        anew = _plain(runner, items, setting, [batch[row] for row in differing])
        for row, result in zip(differing, anew, strict=True):
            results[row] = result
    return results, [divergence.kl_nats for _, divergence in forced]


def _request(item: Item, setting: Setting, idx: int) -> ChatRequest:
    return ChatRequest(
        id=f"item-{idx}",
        images=(item.image,),
        question=item.question,
        budget=setting.request(),
        sampling=SamplingParams(max_tokens=MAX_TOKENS),
        arrival=time.monotonic(),
    )


def _batches(num_items: int, num_visual: int | None) -> Iterator[range]:
    size = min(_MAX_BATCH, max(1, _BATCH_VISUAL // (num_visual or _TYPICAL_VISUAL)))
    for start in range(0, num_items, size):
        yield range(start, min(start + size, num_items))


def _costs(geometry: ModelGeometry, results: Sequence[ChatResult]) -> dict[str, float]:
    costs = [result.cost for result in results]
    return {
        "flops_ratio": mean([cost.prefill_ratio for cost in costs]),
        "total_flops_ratio": sum(c.executed for c in costs) / sum(c.dense for c in costs),
        "par_paper_ratio": mean([par_paper_ratio(geometry, each.plan) for each in results]),
        "tokens_ratio": mean([each.plan.num_kept / each.plan.num_visual for each in results]),
        "layers_ratio": mean([each.plan.num_layers_run / geometry.num_layers for each in results]),
        "kv_bytes": mean([cost.kv_bytes for cost in costs]),
        "kv_ratio": sum(c.kv_bytes for c in costs) / sum(c.dense_kv_bytes for c in costs),
    }
