"""API keys: whether a caller may use /v1, and which tenant it is."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers

from app.errors import AuthenticationFailed

PUBLIC_TENANT = "public"


class KeyRing:
    """Holds only digests of the keys. An empty ring lets everybody in as one public tenant."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def tenant_of(self, headers: Headers) -> str:
        """A stable name that does not reveal the key. Raises AuthenticationFailed."""
        if not self._digests:
            return PUBLIC_TENANT
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise AuthenticationFailed("a valid API key is required: Authorization: Bearer <key>")
        return f"key-{digest[:16]}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
