"""Timed runs of the engine's benchmark to rows: which two settings make which figure, and how.

The goals are those of the shape that stands for LLaVA-1.5-7B on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from allrounder.bench.rows import BenchRow, RatioGoal, compared, counted, row_of
from allrounder.bench.sides import TimedRun
from allrounder.bench.workload import DENSE, NEW_TOKENS, Workload
from allrounder.core import ChatResult, Cost
from allrounder.core.budget import Budget, Counts
from allrounder.engine.protocols import Runner
from allrounder.measure.statistics import bootstrapped, ratios
from allrounder.settings import EngineSettings

Samples = Mapping[str, Sequence[TimedRun]]

GOALS_MODEL = "random-llava-512x32"
GOALS: Mapping[str, RatioGoal] = MappingProxyType(
    {
        "generate/dense/1": RatioGoal(ratio=1.15),
        "generate/dense/8": RatioGoal(ratio=1.3),
        "generate/144x28/1": RatioGoal(ratio=2.7),
        "generate/144x28/8": RatioGoal(ratio=3.5),
        "generate/64x24/1": RatioGoal(ratio=3.5),
        "generate/64x24/8": RatioGoal(ratio=5.0),
        "prefill/0.5": RatioGoal(ratio=0.9),
        "prefill/0.35": RatioGoal(ratio=0.9),
        "prefill/0.25": RatioGoal(ratio=0.9),
        "prefill/0.2": RatioGoal(ratio=0.9),
        "mixed-plans/8": RatioGoal(ratio=0.9),
        "kv-bytes/144x28": RatioGoal(ratio=0.4, at_most=True),
        "router/4096/flops": RatioGoal(ratio=0.02, at_most=True),
        "router/4096/time": RatioGoal(ratio=0.05, at_most=True),
    }
)


def label(counts: Counts) -> str:
    return f"{counts.tokens}x{counts.layers}"


def stages(samples: Samples) -> list[BenchRow]:
    """Seconds of each stage of a dense request."""
    dense, eight = samples["dense/1"], samples["dense/8"]
    steps = NEW_TOKENS - 1
    return [
        row_of("encode/1", bootstrapped([1000 * each.total for each in samples["encode"]]), "ms"),
        row_of("prefill/dense/1", bootstrapped([1000 * each.prefill for each in dense]), "ms"),
        row_of(
            "decode-step/dense/1",
            bootstrapped([1000 * each.decode / steps for each in dense]),
            "ms",
        ),
        row_of(
            "decode-step/dense/8",
            bootstrapped([1000 * each.decode / steps for each in eight]),
            "ms",
        ),
    ]


def beside_library(samples: Samples, setting: str, batch: int) -> BenchRow:
    """End-to-end throughput over that of the library's dense `generate`."""
    ours, theirs = samples[f"{setting}/{batch}"], samples[f"library/{batch}"]
    return compared(
        f"generate/{setting}/{batch}", _rates(ours, batch), _rates(theirs, batch), "tokens/s"
    )


def plan_rows(samples: Samples, plan: str, batch: int) -> list[BenchRow]:
    """Beside the library, beside our own dense, and beside what the plan's shares of work allow.

    The bound is our own dense prefill times the plan's share of its FLOPs, and our own dense decode
    times the share of layers that run.
    """
    ours, dense = samples[f"{plan}/{batch}"], samples[f"dense/{batch}"]
    cost = _cost(ours)
    layers = _layers_ratio(ours[0].results[0])
    bound = [each.prefill * cost.prefill_ratio + each.decode * layers for each in dense]
    rates = _rates(ours, batch)
    return [
        beside_library(samples, plan, batch),
        compared(f"over-dense/{plan}/{batch}", rates, _rates(dense, batch), "tokens/s"),
        compared(
            f"of-bound/{plan}/{batch}",
            rates,
            [batch * NEW_TOKENS / seconds for seconds in bound],
            "tokens/s",
        ),
    ]


def prefill_row(samples: Samples, share: float) -> BenchRow:
    """Wall-clock speed-up of prefill over our own dense, beside the reduction of its FLOPs."""
    ours, dense = samples[f"prefill/{share:g}"], samples["dense/1"]
    reduction = 1 / _cost(ours).prefill_ratio
    speed_ups = ratios([each.prefill for each in dense], [each.prefill for each in ours])
    return compared(f"prefill/{share:g}", speed_ups, [reduction] * len(speed_ups), "x dense")


def mixed_rows(samples: Samples, num_plans: int) -> list[BenchRow]:
    """Different plans in one batch, beside the batches in which all have one of those plans.

    Beside the mean of their throughputs; and beside the throughput of the same work, one eighth of
    each batch, which is what mixing alone could lose.
    """
    mixed = _rates(samples["mixed"], num_plans)
    equal = [samples[f"equal-{idx}"] for idx in range(num_plans)]
    rounds = range(len(mixed))
    rates = [_rates(each, num_plans) for each in equal]
    mean_rates = [sum(each[at] for each in rates) / num_plans for at in rounds]
    mean_seconds = [sum(each[at].total for each in equal) / num_plans for at in rounds]
    same_work = [num_plans * NEW_TOKENS / seconds for seconds in mean_seconds]
    return [
        compared(f"mixed-plans/{num_plans}", mixed, mean_rates, "tokens/s"),
        compared(f"mixed-plans/{num_plans}/same-work", mixed, same_work, "tokens/s"),
    ]


def memory_rows(
    samples: Samples, runner: Runner, workload: Workload, plan: str, counts: Counts
) -> list[BenchRow]:
    """Bytes of keys and values at a request's end, and requests that the default limit admits."""

    def admitted(form: Budget) -> int:
        (request,) = workload.requests([form], image_of=[0])
        demand = runner.demand(runner.prepare(request))
        return limit // demand.kv_bytes(request.sampling.max_tokens)

    limit = int(EngineSettings.model_fields["kv_bytes_limit"].default)
    cost = _cost(samples[f"{plan}/1"])
    unit = f"requests in {limit / 2**30:g} GiB"
    return [
        counted(f"kv-bytes/{plan}", cost.kv_bytes, "bytes", cost.dense_kv_bytes),
        counted(f"kv-requests/{plan}", admitted(counts), unit, admitted(DENSE)),
    ]


def with_goals(rows: Sequence[BenchRow], model: str) -> list[BenchRow]:
    """The rows, each with its goal if `model` is the one that goals are set for."""
    if model != GOALS_MODEL:
        return list(rows)
    return [replace(row, goal=GOALS.get(row.name)) for row in rows]


def _rates(samples: Sequence[TimedRun], batch: int) -> list[float]:
    return [batch * NEW_TOKENS / each.total for each in samples]


def _cost(samples: Sequence[TimedRun]) -> Cost:
    return samples[0].results[0].cost


def _layers_ratio(result: ChatResult) -> float:
    return result.plan.num_layers_run / len(result.plan.runs)
