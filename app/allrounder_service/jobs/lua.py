"""The transitions of batch jobs, each one Lua script: atomic, repeat-safe, on the server's clock.

`flags=allow-oom` marks those that must work with Redis full: they free memory or keep a promise.
Commands are those that Redis >= 7.0 and Valkey >= 7.2 share.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

NAMES = (
    "add_file",
    "begin",
    "beat",
    "cancel",
    "census",
    "claim",
    "create",
    "done",
    "drop_file",
    "expire",
    "expire_files",
    "finalize",
    "forget",
    "keep",
    "prepare",
    "purge",
    "reap",
    "release",
    "retire",
    "submit",
    "sweep",
    "tend",
    "withdraw",
)


def load_sources() -> Mapping[str, str]:
    """Source of every script by name, the shared part included."""
    folder = files("allrounder_service.jobs.scripts")
    common = (folder / "common.lua").read_text()
    return {name: _join(common, (folder / f"{name}.lua").read_text()) for name in NAMES}


def _join(common: str, script: str) -> str:
    """The first line says what Redis must know of a script, so it stays first."""
    shebang, _, body = script.partition("\n")
    return f"{shebang}\n{common}\n{body}"
