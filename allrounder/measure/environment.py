"""What a benchmark's figures were taken on: machine, versions, commit, the exact command."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from allrounder.measure import machine

_ROOT = Path(__file__).parents[2]
_GIT_SECONDS = 5


def environment(command: list[str]) -> dict[str, Any]:
    """`command`: the words that ran it; its own path and the values of keys are left out."""
    return {
        "command": shlex.join(without_keys([Path(command[0]).name, *command[1:]])),
        **machine.processor(),
        "load": round(os.getloadavg()[0], 2),
        "versions": machine.versions(),
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
