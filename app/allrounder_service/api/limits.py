"""Rate limits of an API key: requests and tokens a minute, concurrent requests; per process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from allrounder.errors import RateLimited

MINUTE_NS = 60 * 10**9
BUSY_RETRY_SECONDS = 1.0

Clock = Callable[[], int]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyLimits:
    """0 is no limit. Tokens are `usage.total_tokens`: the prompt after pruning, and the answer."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0

    def override(self, own: Mapping[str, int]) -> KeyLimits:
        return replace(self, **own)


class CountsTokens(Protocol):
    """Work whose number of tokens is an estimate until it ends."""

    @property
    def num_tokens(self) -> int: ...


class TokenBucket:
    """Capacity of one minute, refilled continuously, initially full; may be negative.

    Times are monotonic nanoseconds as integers, so that exactly one token is available after
    exactly `wait_ns`.
    """

    def __init__(self, per_minute: int, now: int) -> None:
        self._per_minute = per_minute
        self._full = per_minute * MINUTE_NS
        self._level = self._full
        self._at = now

    def remaining(self, now: int) -> int:
        self._fill(now)
        return max(0, self._level // MINUTE_NS)

    def take(self, amount: int, now: int) -> None:
        """Always succeeds and may leave a debt; a negative amount is a refund."""
        self._fill(now)
        self._level = min(self._full, self._level - amount * MINUTE_NS)

    def wait_ns(self, now: int) -> int:
        """Time until one token can be taken without debt."""
        self._fill(now)
        return self._ns_to(MINUTE_NS)

    def reset_ns(self, now: int) -> int:
        """Time until it is full."""
        self._fill(now)
        return self._ns_to(self._full)

    def _fill(self, now: int) -> None:
        passed = max(0, now - self._at)
        self._level = min(self._full, self._level + passed * self._per_minute)
        self._at += passed

    def _ns_to(self, level: int) -> int:
        return max(0, -((self._level - level) // self._per_minute))


class KeyMeter:
    """The state of one key's limits; used on the event loop only."""

    def __init__(self, limits: KeyLimits, now: int) -> None:
        self.num_running = 0
        self.set_limits(limits, now)

    def set_limits(self, limits: KeyLimits, now: int) -> None:
        """Replaces the limits: buckets start full, running requests stay counted."""
        self.limits = limits
        self.buckets = {
            name: TokenBucket(per_minute, now)
            for name, per_minute in (
                ("requests", limits.requests_per_minute),
                ("tokens", limits.tokens_per_minute),
            )
            if per_minute
        }

    def check(self, now: int) -> None:
        """Raises RateLimited with the time after which to retry."""
        most = self.limits.concurrent_requests
        if most and self.num_running >= most:
            raise RateLimited(
                f"this key may have {most} requests at a time",
                retry_after_seconds=BUSY_RETRY_SECONDS,
            )
        waits = {name: bucket.wait_ns(now) for name, bucket in self.buckets.items()}
        name = max(waits, key=waits.__getitem__, default="")
        if name and waits[name]:
            per_minute = getattr(self.limits, f"{name}_per_minute")
            raise RateLimited(
                f"this key may have {per_minute} {name} a minute",
                retry_after_seconds=waits[name] / 1e9,
            )


class MeteredRequest:
    """One request of one key: acquired, charged while it runs, released exactly once."""

    def __init__(self, meter: KeyMeter, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._work: CountsTokens | None = None
        self._num_charged = 0

    def acquire(self) -> None:
        """Raises RateLimited, in which case nothing is counted."""
        now = self._clock()
        self._meter.check(now)
        self._meter.num_running += 1
        if bucket := self._meter.buckets.get("requests"):
            bucket.take(1, now)

    def charge(self, work: CountsTokens) -> None:
        """Takes the tokens of `work` now and corrects them at the end."""
        self._work = work
        self._settle()

    def release(self) -> None:
        self._settle()
        self._work = None
        self._meter.num_running -= 1

    def headers(self) -> dict[str, str]:
        """The state of the limits, under OpenAI's header names."""
        self._settle()
        now = self._clock()
        found = {}
        for name, bucket in self._meter.buckets.items():
            per_minute = getattr(self._meter.limits, f"{name}_per_minute")
            found[f"x-ratelimit-limit-{name}"] = str(per_minute)
            found[f"x-ratelimit-remaining-{name}"] = str(bucket.remaining(now))
            found[f"x-ratelimit-reset-{name}"] = duration(bucket.reset_ns(now))
        return found

    def _settle(self) -> None:
        bucket = self._meter.buckets.get("tokens")
        if bucket and self._work is not None:
            num_tokens = self._work.num_tokens
            bucket.take(num_tokens - self._num_charged, self._clock())
            self._num_charged = num_tokens


class Limiter:
    """Keeps one meter per key."""

    def __init__(self, clock: Clock = time.monotonic_ns) -> None:
        self._clock = clock
        self._meters: dict[str, KeyMeter] = {}

    def request(self, name: str, limits: KeyLimits) -> MeteredRequest:
        now = self._clock()
        meter = self._meters.setdefault(name, KeyMeter(limits, now))
        if meter.limits != limits:
            meter.set_limits(limits, now)
        return MeteredRequest(meter, self._clock)


EXPOSED_HEADERS = tuple(
    f"x-ratelimit-{kind}-{name}"
    for name in ("requests", "tokens")
    for kind in ("limit", "remaining", "reset")
)


def duration(ns: int) -> str:
    """In OpenAI's format: `17ms`, `8.64s`, `6m0s`; rounded up."""
    milliseconds = -(-ns // 10**6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    seconds = f"{milliseconds / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds
