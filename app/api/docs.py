"""What OpenAPI says of errors, once for all endpoints."""

from __future__ import annotations

from typing import Any

from app.api.problems import Problem

_WHEN = {
    400: "The body or an image cannot be read, or the prompt is too long.",
    401: "The API key is missing or wrong.",
    404: "There is nothing with this id, or no such model.",
    409: "The batch has ended, or the Idempotency-Key was used for another request.",
    413: "The body is too large.",
    415: "The content type of the body is not supported.",
    422: "A field is wrong; `param` names it.",
    429: "The queue is full; see Retry-After.",
    500: "An error on the server's side.",
    503: "Loading, draining or out of memory; see Retry-After.",
    504: "The deadline passed with nothing to show.",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    return {status: {"model": Problem, "description": _WHEN[status]} for status in statuses}


_EVERYWHERE = (400, 401, 413, 415, 429, 500, 503, 504)
CHAT_PROBLEMS = problems(*_EVERYWHERE, 422)
COMPLETION_PROBLEMS = problems(*_EVERYWHERE, 404)
