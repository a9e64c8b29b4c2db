"""Benchmarks by name.

To add one: a file here with a class that satisfies `Benchmark` (from local files: a subclass of
`LocalBenchmark`), one line in a registry below, and scorer cases in `tests/evaluation` (right,
wrong, malformed, empty; a published score reproduced).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.evaluation.base import Benchmark
from app.evaluation.benchmarks.aokvqa import AOkvqa, AOkvqaDirect
from app.evaluation.benchmarks.demo import DemoBenchmark
from app.evaluation.benchmarks.easy_vqa import EasyVqa
from app.evaluation.benchmarks.gqa import Gqa
from app.evaluation.benchmarks.llava_wild import LlavaBenchInTheWild
from app.evaluation.benchmarks.mm_vet import MmVet
from app.evaluation.benchmarks.mmbench import MMBench, MMBenchCN
from app.evaluation.benchmarks.mme import Mme
from app.evaluation.benchmarks.pope import Pope
from app.evaluation.benchmarks.scienceqa import ScienceQA
from app.evaluation.benchmarks.seed_bench import SeedBench
from app.evaluation.benchmarks.textvqa import TextVqa
from app.evaluation.local import LocalBenchmark

LOCAL: dict[str, type[LocalBenchmark]] = {
    cls.name: cls
    for cls in (
        Pope,
        Mme,
        MMBench,
        MMBenchCN,
        ScienceQA,
        AOkvqa,
        AOkvqaDirect,
        SeedBench,
        LlavaBenchInTheWild,
        Gqa,
        TextVqa,
        MmVet,
        EasyVqa,
    )
}
"""Benchmarks read from local files, which also grade files of answers."""

BENCHMARKS: dict[str, Callable[[Path | None], Benchmark]] = {
    DemoBenchmark.name: DemoBenchmark,
    **LOCAL,
}
"""Name -> how it is opened: from the folder of its official files, None where it needs none."""
