"""Authentication by API key: the caller's tenant, scopes and limits."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.datastructures import Headers

from allrounder.errors import AuthenticationFailed, PermissionRefused
from allrounder_service.api.key_file import KeyRecord, Scope, WatchedKeys
from allrounder_service.api.limits import KeyLimits
from allrounder_service.settings import Settings

PUBLIC_TENANT = "public"

_ISSUED = re.compile(r"ar-([a-z0-9]{4,32})-[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """An authenticated caller; `name` identifies the key without revealing it."""

    name: str
    tenant: str
    scopes: frozenset[Scope]
    limits: KeyLimits

    def require(self, scopes: Iterable[str]) -> None:
        """Raises PermissionRefused unless the key has all of them."""
        missing = sorted(set(scopes) - self.scopes)
        if missing:
            raise PermissionRefused(f"this key lacks the scope {missing[0]}")


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedKey:
    """A new key: its text, shown once, and the record that is stored."""

    text: str
    record: KeyRecord


def issue_key(*, tenant: str, id: str | None = None, **fields: object) -> IssuedKey:
    """Draw 256 random bits; `fields` are those of KeyRecord.

    Raises pydantic's ValidationError for invalid fields.
    """
    id = secrets.token_hex(6) if id is None else id
    text = f"ar-{id}-{secrets.token_urlsafe(32)}"
    made = {"id": id, "sha256": digest_of(text), "tenant": tenant, "created": _now()}
    return IssuedKey(text=text, record=KeyRecord.model_validate(made | fields))


def digest_of(key: str) -> str:
    # 256 random bits need no slow hash.
    return hashlib.sha256(key.encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class KeyRing:
    """Holds only digests of the keys. Without plain keys and a key file every caller is public.

    Args:
        plain: whole keys; each is a tenant of its own with all scopes.
        limits: of every key without its own, and of the public tenant.
        now: the time for expiry, with a time zone.
    """

    def __init__(
        self,
        plain: Iterable[str] = (),
        *,
        watched: WatchedKeys | None = None,
        limits: KeyLimits | None = None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._plain = tuple(digest_of(key) for key in plain)
        self._watched = watched
        self._limits = limits or KeyLimits()
        self._now = now
        self._unknown_digest = digest_of(secrets.token_hex())

    def caller_of(self, headers: Headers) -> Caller:
        """Raises AuthenticationFailed, with the same text for every cause."""
        if not self._plain and self._watched is None:
            return self._with_all_scopes(PUBLIC_TENANT)
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        caller = self._caller_with(key.strip())
        if scheme.lower() != "bearer" or caller is None:
            raise AuthenticationFailed("a valid API key is required: Authorization: Bearer <key>")
        return caller

    def _caller_with(self, key: str) -> Caller | None:
        """Takes the same time whether the key's id is known or not."""
        digest = digest_of(key)
        issued = _ISSUED.fullmatch(key)
        records = self._watched.records() if self._watched else {}
        record = records.get(issued[1] if issued else "")
        is_issued = hmac.compare_digest(digest, record.sha256 if record else self._unknown_digest)
        is_plain = [hmac.compare_digest(digest, known) for known in self._plain]
        if any(is_plain):
            return self._with_all_scopes(f"key-{digest[:16]}")
        if record is None or not is_issued or not record.is_valid(self._now()):
            return None
        return Caller(
            name=record.id,
            tenant=record.tenant,
            scopes=frozenset(record.scopes),
            limits=self._limits.override(record.own_limits),
        )

    def _with_all_scopes(self, tenant: str) -> Caller:
        return Caller(name=tenant, tenant=tenant, scopes=frozenset(Scope), limits=self._limits)


def key_ring(settings: Settings) -> KeyRing:
    """Raises KeyFileUnusable."""
    path = settings.api_keys_file
    return KeyRing(
        (key.get_secret_value() for key in settings.api_keys),
        watched=None if path is None else WatchedKeys(path),
        limits=KeyLimits(
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            concurrent_requests=settings.concurrent_requests,
        ),
    )


def protected_scopes(settings: Settings) -> frozenset[Scope]:
    """The scopes that are required outside /v1."""
    wanted = {Scope.METRICS: settings.protect_metrics, Scope.DOCS: settings.protect_docs}
    return frozenset(scope for scope, is_wanted in wanted.items() if is_wanted)
