"""What a measurement was taken on: machine, memory, versions, commit and the exact command."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).parents[2]
_GIT_SECONDS = 5
_KIB = 1024
_PACKAGES = ("allrounder", "torch", "transformers")


def environment(command: list[str]) -> dict[str, Any]:
    """`command`: the words that ran it; its own path and the values of keys are left out."""
    return {
        "command": shlex.join(without_keys([Path(command[0]).name, *command[1:]])),
        **processor(),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions(),
        "commit": commit(),
    }


def without_keys(words: list[str]) -> list[str]:
    """The words of a command less every flag that ends in `-key`, and its value."""
    kept, rest = [], iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if not flag.endswith("-key"):
            kept.append(word)
        elif not equals:
            next(rest, None)
    return kept


def commit() -> str | None:
    """Of the repository that this package lies in; marked where files differ from it."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def is_installed(package: str) -> bool:
    """Whether an optional package could be imported; does not import it."""
    return find_spec(package) is not None


def processor() -> dict[str, Any]:
    """The processors that this process may use, and how it uses them."""
    return {
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def num_cores() -> int:
    """Those that this process may run on, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Memory of this process now; where the system does not say, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
    return pages * resource.getpagesize()


def device_bytes(device: str) -> int:
    """All memory of the device that holds the model."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
