"""`allrounder bench engine`: every setting once a round, in turns, and the rows made of the rounds.

Compares our dense path with transformers' `generate`, plans with what their shares of work allow,
mixed batches with equal ones, and counts memory and the router's cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from allrounder.bench import engine_rows as rows_of
from allrounder.bench.router_cost import RouterCost
from allrounder.bench.rows import BenchRow
from allrounder.bench.sides import (
    EngineSide,
    LibrarySide,
    TimedRun,
    encode_all,
    encode_seconds,
    median_run,
)
from allrounder.bench.workload import (
    DENSE,
    NEW_TOKENS,
    NUM_IMAGES,
    counts_within,
    make_workload,
    mixed_counts,
    scaled,
)
from allrounder.core.budget import Budget
from allrounder.measure.statistics import turns
from allrounder.models.loading import load_adapter

BATCHES = (1, 8)
PLANS = ((144, 28), (64, 24))
SHARES = (0.5, 0.35, 0.25, 0.2)
REPEATS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Attributes:
    router_width: decoder width at which the router's cost is measured.
    """

    model: str = "random:llava-512x32"
    device: str = "auto"
    dtype: str = "auto"
    rounds: int = 5
    threads: int | None = None
    router_width: int = 4096


class EngineBench:
    """Loads once; `run` may be called once."""

    def __init__(self, options: EngineOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        self._options = options
        self._adapter = load_adapter(options.model, device=options.device, dtype=options.dtype)
        self._workload = make_workload(self._adapter)
        features = encode_all(self._adapter, self._workload.images)
        self._ours = EngineSide(self._adapter, features)
        self._library = LibrarySide(self._adapter, features, self._workload)
        self._router = RouterCost(options.router_width, like=self._adapter)
        geometry, shape = self._adapter.geometry, self._workload.shape
        sizes = {"num_visual": shape.num_visual, "num_layers": geometry.num_layers}
        self._plans = {rows_of.label(c): c for c in (scaled(*plan, **sizes) for plan in PLANS)}
        self._mixed = mixed_counts(**sizes)
        within = {share: counts_within(geometry, shape, share) for share in SHARES}
        self._within = {share: counts for share, counts in within.items() if counts is not None}

    @property
    def num_runs(self) -> int:
        return self._options.rounds * len(self._settings())

    def facts(self) -> dict[str, Any]:
        """What was asked of which model, for the report's environment."""
        adapter, shape = self._adapter, self._workload.shape
        geometry = asdict(adapter.geometry) | {
            "protected_layers": sorted(adapter.geometry.protected_layers)
        }
        return {
            "model": adapter.name,
            "device": adapter.device,
            "dtype": adapter.dtype,
            "geometry": geometry,
            "workload": (
                f"{shape.num_visual} visual + {shape.num_text} text rows, {NEW_TOKENS} new tokens; "
                "visual features computed before, on both sides; the library is given embedded "
                "prompts; requests of an equal-plan batch ask the same of the same image, so "
                "that the strategy random gives them one plan"
            ),
            "rounds": (
                f"{self._options.rounds}, all settings in turns; of a single request each sample "
                f"is the median of {REPEATS} runs"
            ),
        }

    def run(self, *, tick: Callable[[], object] = lambda: None) -> list[BenchRow]:
        settings = self._settings()
        for name in ("library/1", "dense/1"):
            settings[name]()
        names = list(settings)
        samples: dict[str, list[TimedRun]] = {name: [] for name in names}
        for _, idx in turns(len(names), num_rounds=self._options.rounds):
            samples[names[idx]].append(settings[names[idx]]())
            tick()
        found = rows_of.stages(samples)
        for batch in BATCHES:
            found.append(rows_of.beside_library(samples, "dense", batch))
            for plan in self._plans:
                found += rows_of.plan_rows(samples, plan, batch)
        found += [rows_of.prefill_row(samples, share) for share in self._within]
        found += rows_of.mixed_rows(samples, len(self._mixed))
        for plan, counts in self._plans.items():
            found += rows_of.memory_rows(samples, self._ours.runner, self._workload, plan, counts)
        found += self._router.rows(samples["router"], samples["layer"])
        return rows_of.with_goals(found, self._adapter.name)

    def _settings(self) -> dict[str, Callable[[], TimedRun]]:
        settings: dict[str, Callable[[], TimedRun]] = {"encode": self._encode}
        for batch in BATCHES:
            settings[f"library/{batch}"] = self._by_library(batch)
            settings[f"dense/{batch}"] = self._by_us([DENSE] * batch)
            for plan, counts in self._plans.items():
                settings[f"{plan}/{batch}"] = self._by_us([counts] * batch)
        for share, counts in self._within.items():
            settings[f"prefill/{share:g}"] = self._by_us([counts], max_tokens=1)
        for name in [name for name in settings if not name.endswith("/8")]:
            settings[name] = partial(median_run, REPEATS, settings[name])
        settings["mixed"] = self._by_us(self._mixed, image_of=range(len(self._mixed)))
        for idx, counts in enumerate(self._mixed):
            same = [idx] * NUM_IMAGES
            settings[f"equal-{idx}"] = self._by_us([counts] * NUM_IMAGES, image_of=same)
        return settings | self._router.settings()

    def _by_us(
        self,
        forms: Sequence[Budget],
        *,
        image_of: Sequence[int] | None = None,
        max_tokens: int = NEW_TOKENS,
    ) -> Callable[[], TimedRun]:
        images = [0] * len(forms) if image_of is None else image_of
        return lambda: self._ours.answer(
            self._workload.requests(forms, image_of=images, max_tokens=max_tokens)
        )

    def _by_library(self, batch: int) -> Callable[[], TimedRun]:
        return lambda: self._library.answer(batch, NEW_TOKENS)

    def _encode(self) -> TimedRun:
        return TimedRun(total=encode_seconds(self._adapter, self._workload.images[0]))
