"""The one map from errors to HTTP. Never shows an exception's text, a path or an address."""

from __future__ import annotations

import json
import logging
import math

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
from allrounder_service.tracing.trace import note_error

logger = logging.getLogger(__name__)

DEFAULT_RETRY_SECONDS = 1.0

_BY_STATUS: dict[int, tuple[type[AllrounderError], str]] = {
    400: (BadRequest, "the request could not be understood"),
    401: (AuthenticationFailed, "a valid API key is required"),
    403: (PermissionRefused, "this key may not do that"),
    404: (NotFound, "there is nothing at this address"),
    405: (MethodNotAllowed, "this address does not know that method"),
    413: (BodyTooLarge, "the request body is too large"),
    415: (UnsupportedBody, "the content type of the body is not supported"),
}


class ProblemDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    """The body of every answer that is not a success."""

    error: ProblemDetail


def as_problem(exc: Exception) -> AllrounderError:
    """Any exception as a typed error with a text that may be shown.

    Logs what it hides; the request's trace, if there is one, learns how it ends.
    """
    error = _typed(exc)
    note_error(error)
    return error


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


def envelope(error: AllrounderError) -> dict[str, object]:
    detail = ProblemDetail(
        message=error.message, type=error.type, param=error.param, code=error.code
    )
    return {"error": detail.model_dump()}


def to_response(exc: Exception) -> Response:
    error = as_problem(exc)
    headers = dict(exc.headers or {}) if isinstance(exc, HTTPException) else {}
    seconds = error.retry_after_seconds
    if seconds is not None or error.retryable:
        headers["Retry-After"] = str(max(1, math.ceil(seconds or DEFAULT_RETRY_SECONDS)))
    if error.status == AuthenticationFailed.status:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == RequestTimedOut.status:
        headers["Connection"] = "close"
    # ASCII escapes: a lone surrogate in a field's name must not break the answer about it.
    return Response(
        json.dumps(envelope(error)), error.status, headers, media_type="application/json"
    )
