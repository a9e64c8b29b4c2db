"""How a device says that it has no memory left."""

from __future__ import annotations

import torch

from app.errors import AllrounderError, EngineOutOfMemory, InternalError


def is_out_of_memory(err: Exception) -> bool:
    """On CPU torch says so only in its message."""
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(err, known) or "can't allocate memory" in str(err)


def encoding_error(err: Exception) -> AllrounderError:
    """What the request is told whose images could not be encoded alone."""
    if is_out_of_memory(err):
        return EngineOutOfMemory("the request's images do not fit the device even alone")
    return InternalError("the image could not be encoded")
