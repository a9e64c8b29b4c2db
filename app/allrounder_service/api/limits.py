"""What one key may ask of this process: requests and tokens a minute, requests at a time."""

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
    """0: no limit. Tokens are `usage.total_tokens`: of the prompt after pruning, and the answer."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0

    def but(self, own: Mapping[str, int]) -> KeyLimits:
        return replace(self, **own)


class Metered(Protocol):
    """Work whose size is known better and better until it ends."""

    @property
    def num_tokens(self) -> int: ...


class TokenBucket:
    """Holds a minute's worth at most and fills evenly; starts full; may be in debt.

    Times are monotonic nanoseconds, and whole numbers throughout, so that after exactly
    `wait_ns` there is exactly one more.
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
        """Takes it in any case; a negative amount is given back."""
        self._fill(now)
        self._level = min(self._full, self._level - amount * MINUTE_NS)

    def wait_ns(self, now: int) -> int:
        """Until one can be taken without debt."""
        self._fill(now)
        return self._ns_to(MINUTE_NS)

    def reset_ns(self, now: int) -> int:
        """Until it is full."""
        self._fill(now)
        return self._ns_to(self._full)

    def _fill(self, now: int) -> None:
        passed = max(0, now - self._at)
        self._level = min(self._full, self._level + passed * self._per_minute)
        self._at += passed

    def _ns_to(self, level: int) -> int:
        return max(0, -((self._level - level) // self._per_minute))


class Meter:
    """The state of one key's limits. Lives on the event loop."""

    def __init__(self, limits: KeyLimits, now: int) -> None:
        self.num_running = 0
        self.adopt(limits, now)

    def adopt(self, limits: KeyLimits, now: int) -> None:
        """New limits start with full buckets; what runs goes on counting."""
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
        """Raises RateLimited, which says when to come back."""
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


class Visit:
    """One call by one key: let in, charged while it runs, and gone exactly once."""

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._work: Metered | None = None
        self._num_charged = 0

    def enter(self) -> None:
        """Raises RateLimited, and then nothing is counted."""
        now = self._clock()
        self._meter.check(now)
        self._meter.num_running += 1
        if bucket := self._meter.buckets.get("requests"):
            bucket.take(1, now)

    def charge(self, work: Metered) -> None:
        """The tokens of `work` are taken now and corrected at the end."""
        self._work = work
        self._settle()

    def leave(self) -> None:
        self._settle()
        self._work = None
        self._meter.num_running -= 1

    def headers(self) -> dict[str, str]:
        """OpenAI's names for the limits that there are."""
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
    """One meter for each key, kept between calls."""

    def __init__(self, clock: Clock = time.monotonic_ns) -> None:
        self._clock = clock
        self._meters: dict[str, Meter] = {}

    def visit(self, name: str, limits: KeyLimits) -> Visit:
        now = self._clock()
        meter = self._meters.setdefault(name, Meter(limits, now))
        if meter.limits != limits:
            meter.adopt(limits, now)
        return Visit(meter, self._clock)


EXPOSED_HEADERS = tuple(
    f"x-ratelimit-{kind}-{name}"
    for name in ("requests", "tokens")
    for kind in ("limit", "remaining", "reset")
)


def duration(ns: int) -> str:
    """As OpenAI writes it: `17ms`, `8.64s`, `6m0s`; never too short."""
    milliseconds = -(-ns // 10**6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    seconds = f"{milliseconds / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds
