"""Whether a prompt and its answer fit the model's context and the memory for keys and values."""

from __future__ import annotations

from dataclasses import replace

from allrounder.core import ModelGeometry
from allrounder.engine.execution.sequence import PreparedPrompt
from allrounder.errors import ContextLengthExceeded, EngineOutOfMemory


def fitted(
    prepared: PreparedPrompt, geometry: ModelGeometry, *, kv_bytes_limit: int
) -> PreparedPrompt:
    """The request; where nobody asked for a length, with an answer no longer than there is room.

    Raises: ContextLengthExceeded, EngineOutOfMemory.
    """
    request, num_rows = prepared.request, len(prepared.prompt.token_ids)
    sampling, demand, limit = request.sampling, prepared.demand(geometry), geometry.max_positions
    if sampling.is_open_ended:
        for most in (limit - num_rows, demand.most_tokens(kv_bytes_limit)):
            if 1 <= most < sampling.max_tokens:
                sampling = replace(sampling, max_tokens=most)
        prepared = replace(prepared, request=replace(request, sampling=sampling))
    if num_rows + sampling.max_tokens > limit:
        raise ContextLengthExceeded(
            f"the prompt has {num_rows} tokens and max_tokens is {sampling.max_tokens};"
            f" together they may be {limit}",
            param="question" if num_rows >= limit else "max_tokens",
        )
    if demand.kv_bytes(sampling.max_tokens) > kv_bytes_limit:
        raise EngineOutOfMemory("the request's keys and values do not fit even alone")
    return prepared
