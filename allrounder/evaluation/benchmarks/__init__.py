"""Benchmarks by name.

To add one: a file here with a class that satisfies `Benchmark` (from local files: a subclass of
`LocalBenchmark`), one line in a registry below, and scorer cases in `tests/evaluation` (right,
wrong, malformed, empty; a published score reproduced).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from allrounder.evaluation.benchmark import Benchmark
from allrounder.evaluation.benchmarks.aokvqa import AOkvqa, AOkvqaDirect
from allrounder.evaluation.benchmarks.demo import DemoBenchmark
from allrounder.evaluation.benchmarks.easy_vqa import EasyVqa
from allrounder.evaluation.benchmarks.gqa import Gqa
from allrounder.evaluation.benchmarks.llava_wild import LlavaBenchInTheWild
from allrounder.evaluation.benchmarks.mm_vet import MmVet
from allrounder.evaluation.benchmarks.mmbench import MMBench, MMBenchCN
from allrounder.evaluation.benchmarks.mme import Mme
from allrounder.evaluation.benchmarks.pope import Pope
from allrounder.evaluation.benchmarks.scienceqa import ScienceQA
from allrounder.evaluation.benchmarks.seed_bench import SeedBench
from allrounder.evaluation.benchmarks.textvqa import TextVqa
from allrounder.evaluation.local import LocalBenchmark

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
