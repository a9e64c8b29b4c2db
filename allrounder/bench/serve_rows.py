"""Exchanges to rows: latency, throughput, goodput, and counts of rejected and failed requests."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from allrounder.bench.exchange import End, TimedExchange
from allrounder.bench.load import Load
from allrounder.bench.noise_images import jpeg
from allrounder.bench.rows import BenchRow, counted, row_of
from allrounder.images import decode_image
from allrounder.measure.statistics import bootstrapped, percentile

PERCENTS = (50, 90, 99)
_COMPARED_UNITS = ("ms", "requests/s", "tokens/s")
_COMPARED = "beside-peer"
_NUM_DECODED = 50
_RATE = "rate-"
_PLOTTED = (("ttft-p50", "ttft-p99"), ("e2e-p50", "e2e-p99"), ("throughput", "goodput"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """The service level objective of an answer; None sets no limit."""

    first_token_seconds: float | None = None
    seconds: float | None = None

    def is_met(self, found: TimedExchange) -> bool:
        if found.end is not End.OK:
            return False
        first = found.first_token_seconds
        if self.first_token_seconds is not None and (
            first is None or first > self.first_token_seconds
        ):
            return False
        return self.seconds is None or found.seconds <= self.seconds


def goodput(load: Load, slo: Slo) -> float:
    """Answers a second that were complete and met the objective (DistServe, arXiv 2401.09670)."""
    return sum(map(slo.is_met, load.exchanges)) / load.seconds


def open_rows(prefix: str, load: Load, slo: Slo, *, offered: float) -> list[BenchRow]:
    """`offered`: requests a second that were due; the baseline of throughput and goodput."""
    answered = _answered(load)
    return [
        *_latency_rows(prefix, answered, PERCENTS),
        *_budget_rows(prefix, answered),
        *_throughput_rows(prefix, load, offered),
        counted(f"{prefix}/goodput", goodput(load, slo), "requests/s", offered),
        *_count_rows(prefix, load),
    ]


def closed_rows(prefix: str, load: Load) -> list[BenchRow]:
    """With the longest wait for a first token beside the median one, and the time that HTTP and the
    client add to the engine's own."""
    answered = _answered(load)
    waits = _known(found.first_token_seconds for found in answered)
    added = [
        1000 * (found.seconds - found.server_seconds)
        for found in answered
        if found.server_seconds is not None
    ]
    rows = _latency_rows(prefix, answered, (50,))
    if added:
        rows.append(row_of(f"{prefix}/http-over-engine-p50", bootstrapped(added), "ms"))
    if waits:
        rows.append(
            counted(f"{prefix}/wait-max", 1000 * max(waits), "ms", 1000 * percentile(waits, 50))
        )
    return [*rows, *_throughput_rows(prefix, load, None), *_count_rows(prefix, load)]


def decode_row() -> BenchRow:
    """Time to decode one such image; timed here, part of `queue`."""
    data = jpeg(0)
    seconds = []
    for _ in range(_NUM_DECODED):
        started = time.perf_counter()
        decode_image(data)
        seconds.append(time.perf_counter() - started)
    return row_of("image-decode-p50", bootstrapped(_ms(seconds)), "ms")


def beside_peer(own: Sequence[BenchRow], peer: Sequence[BenchRow]) -> list[BenchRow]:
    """Rows of the same name after the target's, ours over the peer's."""
    theirs = {_suffix(row): row for row in peer}
    return [
        counted(f"{_COMPARED}/{_suffix(row)}", row.value, row.unit, theirs[_suffix(row)].value)
        for row in own
        if row.unit in _COMPARED_UNITS and _suffix(row) in theirs
    ]


def plot_rates(rows: Sequence[BenchRow], path: Path) -> None:
    """Latency and goodput over the offered rate by target. Needs the extra `plots`."""
    from allrounder.measure.plots import Panel, draw_curves

    panels = [
        Panel(
            xlabel="offered requests/s",
            ylabel="requests/s" if "goodput" in metrics else "ms",
            curves={
                f"{target} {metric}": [(rate, value, None) for rate, value in points]
                for metric in metrics
                for target, points in _by_target(rows, metric).items()
            },
        )
        for metrics in _PLOTTED
    ]
    path.write_bytes(draw_curves(panels, size=(12, 4), suffix=path.suffix, columns=len(panels)))


def _by_target(rows: Sequence[BenchRow], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Points (rate, value) of one metric."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        target, _, rest = row.name.partition("/")
        rate, _, name = rest.partition("/")
        if name == metric and rate.startswith(_RATE):
            curves[target].append((float(rate.removeprefix(_RATE)), row.value))
    return curves


def _latency_rows(
    prefix: str, answered: Sequence[TimedExchange], percents: Sequence[int]
) -> list[BenchRow]:
    kinds = {
        "ttft": _known(found.first_token_seconds for found in answered),
        "tpot": _known(found.seconds_per_token for found in answered),
        "e2e": [found.seconds for found in answered],
    }
    return [
        row_of(f"{prefix}/{kind}-p{percent}", bootstrapped(_ms(values), percent), "ms")
        for kind, values in kinds.items()
        for percent in percents
    ]


def _budget_rows(prefix: str, answered: Sequence[TimedExchange]) -> list[BenchRow]:
    budgets = sorted({found.budget for found in answered}, reverse=True)
    rows = []
    for budget in budgets if len(budgets) > 1 else ():
        of_budget = [found for found in answered if found.budget == budget]
        rows += _latency_rows(f"{prefix}/budget-{budget:g}", of_budget, (50,))
    return rows


def _throughput_rows(prefix: str, load: Load, offered: float | None) -> list[BenchRow]:
    answered = _answered(load)
    tokens = sum(found.num_tokens for found in answered)
    return [
        counted(f"{prefix}/throughput", len(answered) / load.seconds, "requests/s", offered),
        counted(f"{prefix}/output", tokens / load.seconds, "tokens/s"),
    ]


def _count_rows(prefix: str, load: Load) -> list[BenchRow]:
    """Each end beside all that were sent: the ratio is its share."""
    sent = len(load.exchanges)
    rows = [counted(f"{prefix}/sent", sent, "requests")]
    for end in End:
        count = sum(found.end is end for found in load.exchanges)
        rows.append(counted(f"{prefix}/{end.value}", count, "requests", sent))
    return rows


def _answered(load: Load) -> list[TimedExchange]:
    return [found for found in load.exchanges if found.end is End.OK]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _ms(values: Sequence[float]) -> list[float]:
    return [1000 * value for value in values]


def _suffix(row: BenchRow) -> str:
    return row.name.partition("/")[2]
