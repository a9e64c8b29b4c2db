"""What OpenAPI says of errors, once for all endpoints, and of the fields of a chat body."""

from __future__ import annotations

from typing import Any

from allrounder_service.api.problems import Problem

_WHEN = {
    400: "The body or an image cannot be read, or the prompt is too long.",
    401: "The API key is missing or wrong.",
    403: "The API key lacks the scope for this.",
    404: "There is nothing with this id, or no such model.",
    408: "The body arrives too slowly.",
    409: "The batch has ended, or the Idempotency-Key was used for another request.",
    413: "The body is too large.",
    415: "The content type of the body is not supported.",
    422: "A field is wrong; `param` names it.",
    429: "The queue is full or a limit of the key is reached; see Retry-After.",
    500: "An error on the server's side.",
    503: "Loading, draining or out of memory; see Retry-After.",
    504: "The deadline passed with nothing to show.",
}

BODY_MEANINGS = {
    "question": "What is asked, taken as plain text.",
    "image": "A data URL; in a form, a file.",
    "images": "Several data URLs instead of one image.",
    "budget": "The share of the dense model's prompt compute that may be spent, choosing included, "
    "or one of the object forms; 1 prunes nothing.",
    "max_tokens": "The longest answer, in tokens.",
    "temperature": "0 is greedy.",
    "top_p": "Sample among the likeliest tokens with this much probability.",
    "seed": "Makes sampling repeatable.",
    "stop": "Texts that end the answer, up to four; they are left out of it.",
    "stream": "Server-sent events instead of one answer.",
    "explain": "Adds the tokens that were kept and what each layer saw.",
    "deadline_ms": "The answer ends by then with what it has.",
    "priority": "Batch requests wait while interactive ones do.",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    return {status: {"model": Problem, "description": _WHEN[status]} for status in statuses}


_EVERYWHERE = (400, 401, 403, 408, 413, 415, 429, 500, 503, 504)
CHAT_PROBLEMS = problems(*_EVERYWHERE, 422)
COMPLETION_PROBLEMS = problems(*_EVERYWHERE, 404)
