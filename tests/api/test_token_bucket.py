"""The arithmetic of limits, against its definition and with clocks that jump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.errors import RateLimited
from allrounder_service.api.limits import MINUTE_NS, KeyLimits, Limiter, TokenBucket, duration

PAUSES = st.integers(0, 3 * MINUTE_NS)
CALLS = st.lists(st.tuples(PAUSES, st.integers(1, 5)), max_size=40)


@given(per_minute=st.integers(1, 10**7), calls=CALLS)
def test_no_window_lets_in_more_than_a_bucket_and_what_flows_into_it(per_minute, calls):
    bucket, now, let_in = TokenBucket(per_minute, 0), 0, []
    for pause, attempts in calls:
        now += pause
        for _ in range(attempts):
            if bucket.wait_ns(now) == 0:
                bucket.take(1, now)
                let_in.append(now)
    for first, start in enumerate(let_in):
        for last in range(first, len(let_in)):
            num_seen = last - first + 1
            assert num_seen * MINUTE_NS <= per_minute * (MINUTE_NS + let_in[last] - start)


@given(
    per_minute=st.integers(1, 10**7),
    taken=st.integers(0, 10**8),
    spent=PAUSES,
)
def test_the_wait_is_exact_to_the_nanosecond(per_minute, taken, spent):
    bucket = TokenBucket(per_minute, 0)
    bucket.take(taken, spent)
    wait, reset = bucket.wait_ns(spent), bucket.reset_ns(spent)
    assert reset >= wait
    assert (wait == 0) == (bucket.remaining(spent) >= 1)
    if wait:
        assert bucket.remaining(spent + wait - 1) == 0
        assert bucket.remaining(spent + wait) == 1
    assert bucket.remaining(spent + reset) == per_minute


@given(per_minute=st.integers(1, 10**6), times=st.lists(st.integers(0, 10**12), max_size=20))
def test_a_clock_that_goes_back_gives_nothing_away(per_minute, times):
    bucket, latest = TokenBucket(per_minute, 0), 0
    bucket.take(per_minute, 0)
    for now in times:
        latest = max(latest, now)
        assert bucket.remaining(now) == min(per_minute, latest * per_minute // MINUTE_NS)


def test_what_is_given_back_never_overfills():
    bucket = TokenBucket(10, 0)
    bucket.take(-100, 0)
    assert bucket.remaining(0) == 10


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (17 * 10**6, "17ms"),
        (8_640 * 10**6, "8.64s"),
        (1_000 * 10**6, "1s"),
        (59_999 * 10**6, "59.999s"),
        (6 * MINUTE_NS, "6m0s"),
        (61_500 * 10**6, "1m1.5s"),
    ],
)
def test_durations_read_as_in_openais_headers(ns, text):
    assert duration(ns) == text


class Work:
    def __init__(self, num_tokens=0):
        self.num_tokens = num_tokens


class FakeClock:
    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


@given(sizes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=20))
def test_the_final_charge_of_a_request_is_what_it_used(sizes):
    clock = FakeClock()
    limits = KeyLimits(tokens_per_minute=100_000)
    for first, last in sizes:
        metered = Limiter(clock).request("key", limits)
        metered.acquire()
        work = Work(first)
        metered.charge(work)
        assert metered.headers()["x-ratelimit-remaining-tokens"] == str(100_000 - first)
        work.num_tokens = last
        metered.release()
        assert metered.headers()["x-ratelimit-remaining-tokens"] == str(100_000 - last)


def test_a_debt_is_paid_off_before_the_next_one_is_let_in():
    clock, limits = FakeClock(), KeyLimits(tokens_per_minute=60)
    limiter = Limiter(clock)
    metered = limiter.request("key", limits)
    metered.acquire()
    metered.charge(Work(180))
    metered.release()
    with pytest.raises(RateLimited) as caught:
        limiter.request("key", limits).acquire()
    assert caught.value.retry_after_seconds == 121
    clock.now = 121 * 10**9
    limiter.request("key", limits).acquire()


def test_a_refused_request_takes_nothing_and_keys_do_not_share():
    clock = FakeClock()
    limits = KeyLimits(requests_per_minute=1, concurrent_requests=1)
    limiter = Limiter(clock)
    limiter.request("one", limits).acquire()
    for _ in range(5):
        with pytest.raises(RateLimited):
            limiter.request("one", limits).acquire()
    limiter.request("two", limits).acquire()
    assert limiter.request("one", limits).headers()["x-ratelimit-reset-requests"] == "1m0s"


def test_changed_limits_hold_at_once_and_what_runs_still_counts():
    limiter = Limiter(FakeClock())
    running = limiter.request("key", KeyLimits(concurrent_requests=5))
    running.acquire()
    tight = KeyLimits(concurrent_requests=1)
    with pytest.raises(RateLimited):
        limiter.request("key", tight).acquire()
    running.release()
    limiter.request("key", tight).acquire()
