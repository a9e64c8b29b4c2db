"""Ids of files, batches and lines: unguessable, or derived from one that is."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import Final

_RANDOM_BYTES = 18

FILE_ID: Final = re.compile(r"file-[A-Za-z0-9_-]{24}")
BATCH_ID: Final = re.compile(r"batch_[A-Za-z0-9_-]{24}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")


def new_file_id() -> str:
    return f"file-{secrets.token_urlsafe(_RANDOM_BYTES)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_urlsafe(_RANDOM_BYTES)}"


def derived_file_id(batch: str, role: str) -> str:
    """The same whoever writes the file, so that writing it again brings no second one."""
    return f"file-{_digest(batch, role)}"


def derived_line_id(batch: str, idx: int) -> str:
    return f"batch_req_{_digest(batch, str(idx))}"


def _digest(*parts: str) -> str:
    found = hashlib.sha256("\0".join(parts).encode()).digest()[:_RANDOM_BYTES]
    return base64.urlsafe_b64encode(found).decode()
