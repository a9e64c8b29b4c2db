"""How a device says that it has no memory left, and what is undone then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from allrounder.engine.execution.kv_cache import SequenceKv
from allrounder.engine.protocols import DeviceOutOfMemory
from allrounder.errors import AllrounderError, EngineOutOfMemory, InternalError


def is_out_of_memory(err: Exception) -> bool:
    """On CPU torch says so only in its message."""
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(err, known) or "can't allocate memory" in str(err)


@contextmanager
def undone_without_memory(held: Sequence[SequenceKv]) -> Iterator[None]:
    """Where the device runs out: all KV as it was, then DeviceOutOfMemory."""
    before = [kv.row_counts() for kv in held]
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        if not is_out_of_memory(err):
            raise
        for kv, num_rows in zip(held, before, strict=True):
            kv.store.truncate(num_rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise DeviceOutOfMemory from err


def encoding_error(err: Exception) -> AllrounderError:
    """What the request is told whose images could not be encoded alone."""
    if is_out_of_memory(err):
        return EngineOutOfMemory("the request's images do not fit the device even alone")
    return InternalError("the image could not be encoded")
