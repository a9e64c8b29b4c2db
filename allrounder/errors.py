"""Every error that may leave library or service, as one tree.

`status` is that of our own HTTP endpoints. The API writes an InvalidField as a 400 on OpenAI's.

What is wrong with an argument is a ValueError too, and its `param` names the argument.

AllrounderError
├── StartupError              never HTTP: the process refuses to start
│   ├── ModelUnsupported, RouterMismatch
│   ├── DataFolderInUse, DataFolderUnusable   the embedded queue's; without it chat still works
│   └── KeyFileUnusable
├── InvalidField        422   a field is wrong; `param` names it
│   └── BudgetTooSmall  422
├── BadRequest          400
│   ├── InvalidImage, ImageTooLarge, UnsupportedImageFormat, InvalidBase64
│   ├── ImageUrlNotAllowed, RemoteImagesDisabled
│   ├── ContextLengthExceeded
│   └── MalformedBody
├── AuthenticationFailed 401, PermissionRefused 403, NotFound 404, MethodNotAllowed 405
│   └── ModelNotFound   404
├── Conflict            409
│   └── BatchEnded, IdempotencyKeyReused
├── RequestTimedOut     408   the caller sends too slowly
├── BodyTooLarge        413
├── UnsupportedBody     415
├── QueueFull           429   retryable
├── RateLimited         429   retryable: a limit of the caller's key
├── HeadersTooLarge     431
├── Unavailable         503   retryable
│   ├── Loading, Draining, EngineDead, EngineOutOfMemory, TooManyConnections
│   ├── QueueUnavailable            batch jobs only
│   │   └── QueueUnsupported        its server is too old: another attempt is of no use
│   └── QueueNotConfigured, StorageUnavailable
├── DeadlineExceeded    504
├── RequestCancelled    499   the caller went away; nobody reads the answer
└── InternalError       500
    └── StepFailed      of one that shared a step that failed; the fault may be a neighbour's
"""

from __future__ import annotations

from typing import ClassVar


class AllrounderError(Exception):
    """Base: carries the HTTP status, a stable `code`, whether a retry can help, and a hint."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class StartupError(AllrounderError):
    code = "startup_failed"


class ModelUnsupported(StartupError):
    code = "model_unsupported"


class RouterMismatch(StartupError):
    code = "router_mismatch"


class DataFolderInUse(StartupError):
    code = "data_folder_in_use"


class DataFolderUnusable(StartupError):
    code = "data_folder_unusable"


class KeyFileUnusable(StartupError):
    code = "key_file_unusable"


class InvalidField(AllrounderError, ValueError):
    status = 422
    code = "invalid_field"
    type = "invalid_request_error"


class BudgetTooSmall(InvalidField):
    code = "budget_too_small"


class BadRequest(AllrounderError, ValueError):
    status = 400
    code = "bad_request"
    type = "invalid_request_error"


class InvalidImage(BadRequest):
    code = "invalid_image"


class ImageTooLarge(BadRequest):
    code = "image_too_large"


class UnsupportedImageFormat(BadRequest):
    code = "unsupported_image_format"


class InvalidBase64(BadRequest):
    code = "invalid_base64"


class ImageUrlNotAllowed(BadRequest):
    code = "image_url_not_allowed"


class RemoteImagesDisabled(BadRequest):
    code = "remote_images_disabled"


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class MalformedBody(BadRequest):
    code = "malformed_body"


class AuthenticationFailed(AllrounderError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class PermissionRefused(AllrounderError):
    status = 403
    code = "permission_denied"
    type = "permission_error"


class NotFound(AllrounderError):
    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(AllrounderError):
    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"


class Conflict(AllrounderError):
    status = 409
    code = "conflict"
    type = "invalid_request_error"


class BatchEnded(Conflict):
    code = "batch_ended"


class IdempotencyKeyReused(Conflict):
    code = "idempotency_key_reused"


class RequestTimedOut(AllrounderError):
    status = 408
    code = "request_timeout"
    type = "invalid_request_error"


class BodyTooLarge(AllrounderError):
    status = 413
    code = "body_too_large"
    type = "invalid_request_error"


class UnsupportedBody(AllrounderError):
    status = 415
    code = "unsupported_content_type"
    type = "invalid_request_error"


class QueueFull(AllrounderError):
    status = 429
    code = "queue_full"
    type = "rate_limit_error"
    retryable = True


class RateLimited(AllrounderError):
    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"
    retryable = True


class HeadersTooLarge(AllrounderError):
    status = 431
    code = "headers_too_large"
    type = "invalid_request_error"


class Unavailable(AllrounderError):
    status = 503
    code = "unavailable"
    type = "server_error"
    retryable = True


class Loading(Unavailable):
    code = "loading"


class Draining(Unavailable):
    code = "draining"


class EngineDead(Unavailable):
    code = "engine_dead"


class EngineOutOfMemory(Unavailable):
    code = "engine_oom"


class TooManyConnections(Unavailable):
    code = "too_many_connections"


class QueueUnavailable(Unavailable):
    code = "queue_unavailable"


class QueueUnsupported(QueueUnavailable):
    retryable = False


class QueueNotConfigured(Unavailable):
    code = "queue_not_configured"
    retryable = False


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class DeadlineExceeded(AllrounderError):
    status = 504
    code = "deadline_exceeded"
    type = "timeout_error"


class RequestCancelled(AllrounderError):
    status = 499
    code = "cancelled"
    type = "invalid_request_error"


class InternalError(AllrounderError):
    pass


class StepFailed(InternalError):
    code = "step_failed"
