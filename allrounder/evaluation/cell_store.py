"""A folder of finished cells, keyed by everything that determines them; writes are atomic."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# Raised when what a cell holds, or how it comes about, changes.
FORMAT = 1


class CellStore:
    """A key-value store of cells; without a folder it lives as long as the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[str, dict[str, Any]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The body, or None. A file that cannot be read counts as missing, with a warning."""
        if self._folder is None:
            return self._kept.get(_digest(key))
        path = self._path(key)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            logger.warning("%s cannot be read and is made anew", path)
            return None
        return found["body"] if found["key"] == _plain(key) else None

    def keep(self, key: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        if self._folder is None:
            self._kept[_digest(key)] = dict(body)
            return
        text = json.dumps({"key": key, "body": body}, separators=(",", ":"), allow_nan=False)
        write_whole(self._path(key), text + "\n")

    def _path(self, key: Mapping[str, Any]) -> Path:
        assert self._folder is not None, "only a store with a folder has paths"
        words = [key["kind"], *(key[name] for name in ("strategy", "budget") if name in key)]
        name = re.sub(r"[^a-z0-9.+]+", "-", " ".join(map(str, words)).lower()).strip("-")
        return self._folder / f"{name}-{_digest(key)[:12]}.json"


def write_whole(path: Path, content: str | bytes) -> None:
    """An interrupted write leaves the old file, or none."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(key: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(key))


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
