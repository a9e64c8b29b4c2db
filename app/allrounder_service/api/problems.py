"""The one map from errors to HTTP. Never shows an exception's text, a path or an address."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from allrounder.errors import (
    AllrounderError,
    AuthenticationFailed,
    BadRequest,
    BodyTooLarge,
    InternalError,
    InvalidField,
    MethodNotAllowed,
    NotFound,
    PermissionRefused,
    RequestCancelled,
    RequestTimedOut,
    UnsupportedBody,
)
from allrounder_service.api.intake.api_request import ApiRequest, Endpoint
from allrounder_service.tracing.trace import note_error

logger = logging.getLogger(__name__)

DEFAULT_RETRY_SECONDS = 1.0
OPENAI_PATHS: tuple[str, ...] = (Endpoint.COMPLETIONS, "/v1/files", "/v1/batches")
"""The endpoints in OpenAI's dialect, with all below them: there an invalid field is a 400."""

_BY_STATUS: dict[int, tuple[type[AllrounderError], str]] = {
    400: (BadRequest, "the request could not be understood"),
    401: (AuthenticationFailed, "a valid API key is required"),
    403: (PermissionRefused, "this key may not do that"),
    404: (NotFound, "there is nothing at this address"),
    405: (MethodNotAllowed, "this address does not know that method"),
    413: (BodyTooLarge, "the request body is too large"),
    415: (UnsupportedBody, "the content type of the body is not supported"),
}
_DESCRIPTIONS = {
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


class ProblemDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    """The body of every answer that is not a success."""

    error: ProblemDetail


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorAnswer:
    """An error as it is sent."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def error_answer(
    exc: Exception, *, endpoint: str = "", asked: ApiRequest | None = None
) -> ErrorAnswer:
    """Any exception as the answer of an endpoint, in that endpoint's dialect.

    Logs what the answer hides; the current trace, if there is one, records the error.

    Args:
        endpoint: its path; "" where there is none.
        asked: the request that the exception is about, once its body has been parsed.
    """
    error = _typed(exc)
    note_error(error)
    status, param = error.status, error.param
    if endpoint.startswith(OPENAI_PATHS):
        if isinstance(error, InvalidField):
            status = BadRequest.status
        if asked is not None:
            param = _openai_params(asked).get(param or "", param)
    detail = ProblemDetail(message=error.message, type=error.type, param=param, code=error.code)
    return ErrorAnswer(
        status=status, body={"error": detail.model_dump()}, headers=_headers(exc, error)
    )


def to_response(exc: Exception, *, endpoint: str = "", asked: ApiRequest | None = None) -> Response:
    answer = error_answer(exc, endpoint=endpoint, asked=asked)
    # ASCII escapes: a lone surrogate in a field's name must not break the answer about it.
    content = json.dumps(answer.body)
    return Response(content, answer.status, answer.headers, media_type="application/json")


def _openai_params(asked: ApiRequest) -> dict[str, str]:
    """What the engine calls a field -> what the caller of a completion calls it."""
    return {
        "question": "messages",
        "image": "messages",
        "images": "messages",
        "max_tokens": asked.max_tokens_field,
    }


def _headers(exc: Exception, error: AllrounderError) -> dict[str, str]:
    headers = dict(exc.headers or {}) if isinstance(exc, HTTPException) else {}
    seconds = error.retry_after_seconds
    if seconds is not None or error.retryable:
        headers["Retry-After"] = str(max(1, math.ceil(seconds or DEFAULT_RETRY_SECONDS)))
    if error.status == AuthenticationFailed.status:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == RequestTimedOut.status:
        headers["Connection"] = "close"
    return headers


def _typed(exc: Exception) -> AllrounderError:
    match exc:
        case AllrounderError():
            return exc
        case HTTPException():
            kind, text = _BY_STATUS.get(exc.status_code, (InternalError, "the request failed"))
            return kind(text)
        case RequestValidationError():
            param = str(exc.errors()[0]["loc"][-1])[:128]
            return InvalidField(f"{param}: the value is not valid", param=param)
        case ClientDisconnect():
            return RequestCancelled("the client went away")
        case _:
            logger.error("unexpected error", exc_info=exc)
            return InternalError(
                "something went wrong on the server's side; its log has this request's id"
            )


Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """The errors of an endpoint, for OpenAPI."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in statuses}
