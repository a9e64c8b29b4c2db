"""Benchmarks by name.

To add one: a file here with a class that satisfies `Benchmark`, one line in `BENCHMARKS`, and
scorer cases in `tests/evaluation` (right, wrong, malformed, empty; a published score reproduced).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.evaluation.base import Benchmark
from app.evaluation.benchmarks.demo import DemoBenchmark

BENCHMARKS: dict[str, Callable[[Path | None], Benchmark]] = {DemoBenchmark.name: DemoBenchmark}
"""Name -> how it is opened: from the folder of its official files, None where it needs none."""
