"""The contracts can be violated: each mutant of the scripts violates one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import Phase
from redis.asyncio import Redis

from allrounder_service.jobs.queue import load_sources
from tests.jobs.contracts import CONTRACTS, Contract
from tests.jobs.scenes import Scene, connected
from tests.jobs.servers import BINARIES, RunningServer, running_server
from tests.jobs.test_queue_model import explore

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """`old` becomes `new` once in one script, which violates the contract `caught_by`."""

    script: str = ""
    old: str = ""
    new: str = ""
    start: str = "0"
    caught_by: str


MUTANTS: dict[str, Mutant] = {
    "done: any fencing token publishes": Mutant(
        script="done",
        old="if j[2] == ARGV[2] and j[1] == 'running' then",
        new="if j[1] == 'running' then",
        caught_by="a_stale_execution_publishes_nothing",
    ),
    "done: ended lines end again": Mutant(
        script="done",
        old="if j[2] == ARGV[2] and j[1] == 'running' then",
        new="if j[2] == ARGV[2] then",
        caught_by="every_transition_of_a_line_is_idempotent",
    ),
    "heartbeat: renews leases of others": Mutant(
        script="heartbeat",
        old="if j[1] == 'running' and j[2] == ARGV[i + 1] then",
        new="if j[1] == 'running' then",
        caught_by="a_worker_that_resumes_does_not_regain_its_line",
    ),
    "heartbeat: renews nothing": Mutant(
        script="heartbeat",
        old="'g', worker, 0, j[4], 'JUSTID')",
        new="'g', worker, 0, j[4], 'IDLE', 10000000, 'JUSTID')",
        caught_by="a_heartbeat_renews_leases_and_names_lost_ones",
    ),
    "claim: acknowledged before the result": Mutant(
        script="claim",
        old="attempts, alone and 1 or 0}",
        new="attempts, alone and 1 or 0} remove_entry(lane, sid)",
        caught_by="lines_of_a_crashed_worker_are_redelivered",
    ),
    "claim: the old fencing token again": Mutant(
        script="claim",
        old="'fence', 1)",
        new="'fence', 0)",
        caught_by="a_released_line_is_retried_without_a_crash",
    ),
    "claim: a solo lease that never expires": Mutant(
        script="claim",
        old="'NX', 'PX', ARGV[4])",
        new="'NX') if alone and running == 0 then return out end",
        caught_by="the_solo_lease_expires_with_its_worker",
    ),
    "claim: suspects beside other lines": Mutant(
        script="claim",
        old="ipairs(alone and {'suspect'} or {'retry', 'batch'})",
        new="ipairs({'suspect', 'retry', 'batch'})",
        caught_by="a_suspect_runs_alone_while_others_go_on",
    ),
    "claim: a suspect beside running lines": Mutant(
        script="claim",
        old="if alone and running > 0 then return out end",
        new="",
        caught_by="one_worker_drains_before_it_runs_a_suspect",
    ),
    "claim: other lines beside a running suspect": Mutant(
        script="claim",
        old="if running > 0 and #redis.call(",
        new="if false and #redis.call(",
        caught_by="a_suspect_runs_alone_even_after_the_solo_lease_has_expired",
    ),
    "claim: new lines before retries": Mutant(
        script="claim",
        old="{'retry', 'batch'}",
        new="{'batch', 'retry'}",
        caught_by="retries_are_claimed_before_new_lines",
    ),
    "prepare: groups that read only later entries": Mutant(
        start="$", caught_by="work_older_than_the_consumer_groups_is_found"
    ),
    "promote: a lane with MAXLEN": Mutant(
        script="submit",
        old="redis.call('XADD', P .. 'lane:batch', '*',",
        new="redis.call('XADD', P .. 'lane:batch', 'MAXLEN', 32, '*',",
        caught_by="the_lane_keeps_every_line_of_a_window_in_order",
    ),
    "promote: no window": Mutant(
        script="submit",
        old="local free = window -",
        new="local free = 100000 -",
        caught_by="a_tenant_waits_behind_one_window_of_another",
    ),
    "claim: running lines stay in the window": Mutant(
        script="claim",
        old="shrink_window(j[3])\n          if not",
        new="if not",
        caught_by="running_lines_do_not_count_in_the_window",
    ),
    "claim: the window is not refilled": Mutant(
        script="claim",
        old="for _, tenant in ipairs(tenants) do promote(tenant, tonumber(ARGV[5])) end",
        new="",
        caught_by="running_lines_do_not_count_in_the_window",
    ),
    "release: a line that fails never runs alone": Mutant(
        script="release",
        old="(j[4] == 'suspect' or faults > 1)",
        new="j[4] == 'suspect'",
        caught_by="a_line_that_fails_beside_others_twice_runs_alone",
    ),
    "release: every released line counts as failed": Mutant(
        script="release",
        old="ARGV[4] == '1'",
        new="true",
        caught_by="a_line_that_fails_beside_others_twice_runs_alone",
    ),
    "reap: no grace period after an outage": Mutant(
        script="reap",
        old="if redis.call('EXISTS', P .. 'grace') == 1 then return 0 end",
        new="",
        caught_by="after_an_outage_no_line_is_reclaimed_for_one_lease",
    ),
    "reap: a grace period without end": Mutant(
        script="reap",
        old="redis.call('SET', P .. 'grace', 1, 'PX', ARGV[1])",
        new="redis.call('SET', P .. 'grace', 1)",
        caught_by="after_an_outage_no_line_is_reclaimed_for_one_lease",
    ),
    "publish: the window does not shrink": Mutant(
        script="withdraw",
        old="redis.call('HINCRBY', P .. 'window', tenant, -1) <= 0",
        new="redis.call('HINCRBY', P .. 'window', tenant, 0) <= 0",
        caught_by="every_end_of_a_line_refills_the_window",
    ),
    "publish: the entry stays in the lane": Mutant(
        script="done",
        old="redis.call('XDEL', P .. 'lane:' .. lane, sid)",
        new="",
        caught_by="a_batch_runs_from_admission_to_its_files",
    ),
    "publish: the last line does not end the batch": Mutant(
        script="done",
        old="if redis.call('HINCRBY', batch, 'remaining', -1) == 0 then lines_ended(j[4]) end",
        new="redis.call('HINCRBY', batch, 'remaining', -1)",
        caught_by="a_batch_runs_from_admission_to_its_files",
    ),
    "lines_ended: the batch is not due": Mutant(
        script="done",
        old="redis.call('ZADD', DUE, now(), batch)",
        new="",
        caught_by="a_batch_is_due_whenever_it_needs_a_controller",
    ),
    "publish: the depth is not reduced": Mutant(
        script="done",
        old="  reduce_depth(j[3], 1)\n",
        new="",
        caught_by="admission_ends_at_the_limits_and_begins_again_below",
    ),
    "reap: the fencing token of a crashed worker stays valid": Mutant(
        script="reap",
        old="redis.call('HINCRBY', key, 'fence', 1)",
        new="",
        caught_by="a_worker_is_fenced_off_as_soon_as_its_line_is_reclaimed",
    ),
    "reap: every crash counts as one alone": Mutant(
        script="reap",
        old="lane == 'suspect' and redis.call('HINCRBY', key, 'solo_crashes', 1) or 0",
        new="redis.call('HINCRBY', key, 'solo_crashes', 1)",
        caught_by="poison_lines_fail_no_other_line",
    ),
    "reap: no line becomes a dead letter": Mutant(
        script="reap",
        old="solo >= tonumber(ARGV[2])",
        new="solo > 1000",
        caught_by="a_second_crash_makes_a_line_suspect_and_two_alone_a_dead_letter",
    ),
    "reap: lines of a stopped batch run again": Mutant(
        script="reap",
        old="if cancel ~= '' then",
        new="if false then",
        caught_by="lines_of_a_stopped_batch_end_in_every_state",
    ),
    "reap: consumers are removed with their pending entries": Mutant(
        script="reap",
        old="if consumer[4] == 0 and consumer[6]",
        new="if consumer[6]",
        caught_by="a_consumer_is_removed_only_when_it_holds_nothing",
    ),
    "reap: scans the first thousands only": Mutant(
        script="reap",
        old="until cursor == '0-0' or taken >= 200",
        new="until true",
        caught_by="an_expired_lease_is_found_behind_thousands_that_are_not",
    ),
    "release: counted as a crash": Mutant(
        script="release",
        old="if j[3] ~= '' then",
        new="redis.call('HINCRBY', P .. 'job:' .. ARGV[1], 'crashes', 1) if j[3] ~= '' then",
        caught_by="a_released_line_is_retried_without_a_crash",
    ),
    "release: any fencing token": Mutant(
        script="release",
        old="if j[2] ~= ARGV[2] then return 0 end",
        new="",
        caught_by="a_stale_execution_publishes_nothing",
    ),
    "submit: repeated lines are submitted again": Mutant(
        script="submit",
        old="if redis.call('HSETNX', job, 'state', 'queued') == 1 then",
        new="redis.call('HSET', job, 'state', 'queued') do",
        caught_by="lines_come_in_order_once_and_no_more_than_were_admitted",
    ),
    "submit: any fencing token": Mutant(
        script="submit",
        old="if b[1] ~= ARGV[2] or b[2]",
        new="if b[2]",
        caught_by="a_controller_with_a_wrong_fencing_token_changes_nothing",
    ),
    "submit: gaps are accepted": Mutant(
        script="submit",
        old="first > submitted or last",
        new="last",
        caught_by="lines_come_in_order_once_and_no_more_than_were_admitted",
    ),
    "begin: any fencing token": Mutant(
        script="begin",
        old="if b[1] ~= ARGV[2] or b[6]",
        new="if b[6]",
        caught_by="a_controller_with_a_wrong_fencing_token_changes_nothing",
    ),
    "finalize: any fencing token": Mutant(
        script="finalize",
        old="if b[1] ~= ARGV[2] or number",
        new="if number",
        caught_by="a_stale_controller_cannot_withdraw_sweep_finalize_or_forget",
    ),
    "finalize: lines may be left": Mutant(
        script="finalize",
        old="or number(b[3]) ~= 0 then",
        new="then",
        caught_by="a_line_that_finishes_after_the_cancellation_counts_as_done",
    ),
    "lease_batch: the previous controller is not fenced off": Mutant(
        script="lease_batch",
        old="'fence', 1)",
        new="'fence', 0)",
        caught_by="a_controller_with_a_wrong_fencing_token_changes_nothing",
    ),
    "cancel: stops twice": Mutant(
        script="cancel",
        old="if b[3] ~= '' or (",
        new="if (",
        caught_by="lines_of_a_stopped_batch_end_in_every_state",
    ),
    "cancel: lines that were not submitted are ignored": Mutant(
        script="cancel",
        old="return redis.call('HINCRBY', key, 'remaining', 0 - withheld)",
        new="return 1",
        caught_by="a_batch_that_was_never_started_ends_when_stopped",
    ),
    "cancel: a count of -0": Mutant(
        script="cancel",
        old="'depth', tenant, 0 - lines)",
        new="'depth', tenant, -lines)",
        caught_by="cancelling_works_before_the_end_and_changes_nothing_after",
    ),
    "withdraw: running lines are not marked": Mutant(
        script="withdraw",
        old="redis.call('HSET', P .. 'job:' .. job, 'cancel', b[2])",
        new="",
        caught_by="lines_of_a_stopped_batch_end_in_every_state",
    ),
    "create: idempotency keys are ignored": Mutant(
        script="create",
        old="if old[1] and redis",
        new="if false and redis",
        caught_by="one_idempotency_key_makes_one_batch",
    ),
    "create: idempotency keys outlive their batch": Mutant(
        script="create",
        old="if old[1] and redis.call('EXISTS', P .. 'batch:' .. old[1]) == 1 then",
        new="if old[1] then",
        caught_by="an_idempotency_key_is_free_again_when_its_batch_is_forgotten",
    ),
    "create: ended lines do not count": Mutant(
        script="create",
        old="number(redis.call('GET', P .. 'held'))",
        new="number(redis.call('HGET', P .. 'depth', ':all'))",
        caught_by="ended_lines_count_against_the_limit_until_the_clean_up",
    ),
    "sweep: held is reduced twice": Mutant(
        script="sweep",
        old="if b[5] == '0' and redis",
        new="if redis",
        caught_by="ended_lines_count_against_the_limit_until_the_clean_up",
    ),
    "purge: a running batch": Mutant(
        script="purge",
        old="if not b[1] or not b[2] then",
        new="if not b[1] then",
        caught_by="only_a_batch_that_has_ended_is_purged",
    ),
    "purge: a deleted batch": Mutant(
        script="purge",
        old="if not b[1] or not b[2] then",
        new="if b[1] and not b[2] then",
        caught_by="only_a_batch_that_has_ended_is_purged",
    ),
    "census: a missing lane": Mutant(
        script="census",
        old="there and redis",
        new="redis",
        caught_by="the_census_of_a_server_that_was_emptied_counts_nothing",
    ),
    "create: idempotency keys never expire": Mutant(
        script="create",
        old="redis.call('EXPIRE', idem, ARGV[8])",
        new="",
        caught_by="one_idempotency_key_makes_one_batch",
    ),
    "renew_batch: any controller": Mutant(
        script="renew_batch",
        old="~= ARGV[2] then return 0 end",
        new="== '' then return 0 end",
        caught_by="a_controller_with_a_wrong_fencing_token_changes_nothing",
    ),
    "retire: the solo lease is kept": Mutant(
        script="retire",
        old="if redis.call('GET', P .. 'solo') == ARGV[1] then",
        new="if false then",
        caught_by="a_retiring_worker_releases_the_solo_lease",
    ),
}


def mutated(mutant: Mutant) -> dict[str, str]:
    """The sources with one text replaced; it must occur exactly once."""
    sources = dict(load_sources())
    if mutant.script:
        found = sources[mutant.script].count(mutant.old)
        assert found == 1, f"{mutant.old!r} is {found} times in {mutant.script}"
        sources[mutant.script] = sources[mutant.script].replace(mutant.old, mutant.new)
    return sources


@pytest.fixture(scope="module")
def quick_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("mutants")
    with running_server(BINARIES[0], folder, appendfsync="no") as server:
        yield server


async def find_fault(client: Redis, check: Contract, mutant: Mutant) -> str:
    """How the mutant violates the contract; '' where it does not."""
    await client.flushall()
    scene = Scene(client, sources=mutated(mutant), start=mutant.start)
    try:
        await scene.prepare()
        async with asyncio.timeout(60):
            await check(scene)
    except Exception as err:
        return f"{type(err).__name__}: {err}".partition("\n")[0]
    return "; ".join(await scene.violations())


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_mutant_violates_its_contract(name: str, quick_server: RunningServer) -> None:
    mutant = MUTANTS[name]
    async with connected(quick_server.url) as client:
        fault = await find_fault(client, CONTRACTS[mutant.caught_by], mutant)
    print(f"{name:50} {mutant.caught_by}: {fault[:120]}")
    assert fault


@pytest.mark.parametrize("name", sorted({mutant.caught_by for mutant in MUTANTS.values()}))
async def test_the_real_queue_keeps_that_contract(name: str, quick_server: RunningServer) -> None:
    async with connected(quick_server.url) as client:
        assert await find_fault(client, CONTRACTS[name], Mutant(caught_by=name)) == ""


FOUND_SOON = (
    "done: any fencing token publishes",
    "heartbeat: renews leases of others",
    "claim: acknowledged before the result",
    "claim: the old fencing token again",
    "reap: the fencing token of a crashed worker stays valid",
    "claim: running lines stay in the window",
)
# Each takes half a minute of random steps; the named contracts find them at once.
FOUND_LATE = (
    "done: ended lines end again",
    "heartbeat: renews nothing",
    "claim: suspects beside other lines",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "found_by_steps" in metafunc.fixturenames:
        long_form = metafunc.config.getoption("--long")
        metafunc.parametrize("found_by_steps", [*FOUND_SOON, *FOUND_LATE * bool(long_form)])


def test_a_mutant_is_found_by_random_steps_too(
    found_by_steps: str, quick_server: RunningServer
) -> None:
    with pytest.raises(AssertionError):
        explore(
            quick_server,
            mutated(MUTANTS[found_by_steps]),
            max_examples=60,
            stateful_step_count=40,
            phases=[Phase.generate],
            derandomize=True,
            database=None,
        )
