"""The promises can be broken: for each way to break the queue one of them notices."""

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
    """`old` becomes `new` in one script, once; the check that is known to notice goes first."""

    script: str = ""
    old: str = ""
    new: str = ""
    start: str = "0"
    noticed_by: str


MUTANTS: dict[str, Mutant] = {
    "done: any fence publishes": Mutant(
        script="done",
        old="if j[2] == ARGV[2] and j[1] == 'running' then",
        new="if j[1] == 'running' then",
        noticed_by="a_stale_execution_publishes_nothing",
    ),
    "done: ended lines end again": Mutant(
        script="done",
        old="if j[2] == ARGV[2] and j[1] == 'running' then",
        new="if j[2] == ARGV[2] then",
        noticed_by="every_transition_of_a_line_may_be_repeated",
    ),
    "beat: takes lines back": Mutant(
        script="heartbeat",
        old="if j[1] == 'running' and j[2] == ARGV[i + 1] then",
        new="if j[1] == 'running' then",
        noticed_by="a_frozen_worker_that_wakes_does_not_take_its_line_back",
    ),
    "beat: renews nothing": Mutant(
        script="heartbeat",
        old="'g', worker, 0, j[4], 'JUSTID')",
        new="'g', worker, 0, j[4], 'IDLE', 10000000, 'JUSTID')",
        noticed_by="a_beat_renews_a_lease_and_names_what_was_lost",
    ),
    "claim: acknowledged before the result": Mutant(
        script="claim",
        old="attempts, alone and 1 or 0}",
        new="attempts, alone and 1 or 0} remove_entry(lane, sid)",
        noticed_by="what_a_dead_worker_held_is_done_by_another",
    ),
    "claim: the old fence again": Mutant(
        script="claim",
        old="'fence', 1)",
        new="'fence', 0)",
        noticed_by="a_released_line_goes_on_without_a_crash",
    ),
    "claim: the turn at suspects without an end": Mutant(
        script="claim",
        old="'NX', 'PX', ARGV[4])",
        new="'NX') if alone and running == 0 then return out end",
        noticed_by="the_turn_at_suspects_ends_with_its_worker",
    ),
    "claim: suspects in a batch": Mutant(
        script="claim",
        old="ipairs(alone and {'suspect'} or {'retry', 'batch'})",
        new="ipairs({'suspect', 'retry', 'batch'})",
        noticed_by="a_suspect_runs_alone_while_others_go_on",
    ),
    "claim: a suspect beside a running batch": Mutant(
        script="claim",
        old="if alone and running > 0 then return out end",
        new="",
        noticed_by="one_worker_empties_its_batch_before_it_runs_a_suspect",
    ),
    "claim: company for a suspect": Mutant(
        script="claim",
        old="if running > 0 and #redis.call(",
        new="if false and #redis.call(",
        noticed_by="a_suspect_has_no_company_even_when_its_turn_has_lapsed",
    ),
    "claim: new lines before those begun": Mutant(
        script="claim",
        old="{'retry', 'batch'}",
        new="{'batch', 'retry'}",
        noticed_by="what_was_begun_goes_before_what_is_new",
    ),
    "prepare: groups that see only what comes": Mutant(
        start="$", noticed_by="work_older_than_the_consumer_groups_is_found"
    ),
    "promote: a lane with MAXLEN": Mutant(
        script="submit",
        old="redis.call('XADD', P .. 'lane:batch', '*',",
        new="redis.call('XADD', P .. 'lane:batch', 'MAXLEN', 32, '*',",
        noticed_by="the_lane_keeps_every_line_of_a_window_in_order",
    ),
    "promote: no window": Mutant(
        script="submit",
        old="local free = window -",
        new="local free = 100000 -",
        noticed_by="a_tenant_waits_behind_one_window_of_another",
    ),
    "claim: what runs keeps its place in the window": Mutant(
        script="claim",
        old="shrink_window(j[3])\n          if not",
        new="if not",
        noticed_by="what_runs_takes_no_room_from_what_waits",
    ),
    "claim: a window that was left stays empty": Mutant(
        script="claim",
        old="for _, tenant in ipairs(tenants) do promote(tenant, tonumber(ARGV[5])) end",
        new="",
        noticed_by="what_runs_takes_no_room_from_what_waits",
    ),
    "release: what fails never runs alone": Mutant(
        script="release",
        old="(j[4] == 'suspect' or faults > 1)",
        new="j[4] == 'suspect'",
        noticed_by="what_fails_beside_others_twice_runs_alone",
    ),
    "release: who gives back is suspect": Mutant(
        script="release",
        old="ARGV[4] == '1'",
        new="true",
        noticed_by="what_fails_beside_others_twice_runs_alone",
    ),
    "reap: no grace after an outage": Mutant(
        script="reap",
        old="if redis.call('EXISTS', P .. 'grace') == 1 then return 0 end",
        new="",
        noticed_by="after_an_outage_nobody_is_dead_for_a_lease",
    ),
    "reap: grace for ever": Mutant(
        script="reap",
        old="redis.call('SET', P .. 'grace', 1, 'PX', ARGV[1])",
        new="redis.call('SET', P .. 'grace', 1)",
        noticed_by="after_an_outage_nobody_is_dead_for_a_lease",
    ),
    "publish: the window is not given back": Mutant(
        script="withdraw",
        old="redis.call('HINCRBY', P .. 'window', tenant, -1) <= 0",
        new="redis.call('HINCRBY', P .. 'window', tenant, 0) <= 0",
        noticed_by="a_window_is_filled_again_by_every_way_out",
    ),
    "publish: the entry stays in the lane": Mutant(
        script="done",
        old="redis.call('XDEL', P .. 'lane:' .. lane, sid)",
        new="",
        noticed_by="a_batch_runs_from_the_door_to_its_files",
    ),
    "publish: the last line wakes nobody": Mutant(
        script="done",
        old="if redis.call('HINCRBY', batch, 'remaining', -1) == 0 then lines_ended(j[4]) end",
        new="redis.call('HINCRBY', batch, 'remaining', -1)",
        noticed_by="a_batch_runs_from_the_door_to_its_files",
    ),
    "settle: the steward is not called": Mutant(
        script="done",
        old="redis.call('ZADD', DUE, now(), batch)",
        new="",
        noticed_by="a_steward_is_found_for_every_batch_that_needs_one",
    ),
    "publish: depth is not given back": Mutant(
        script="done",
        old="  reduce_depth(j[3], 1)\n",
        new="",
        noticed_by="admission_ends_at_the_limits_and_begins_again_below",
    ),
    "reap: the dead worker's fence stays good": Mutant(
        script="reap",
        old="redis.call('HINCRBY', key, 'fence', 1)",
        new="",
        noticed_by="a_worker_is_fenced_off_as_soon_as_its_line_is_taken_back",
    ),
    "reap: every crash counts as one alone": Mutant(
        script="reap",
        old="lane == 'suspect' and redis.call('HINCRBY', key, 'solo_crashes', 1) or 0",
        new="redis.call('HINCRBY', key, 'solo_crashes', 1)",
        noticed_by="poison_takes_no_innocent_with_it",
    ),
    "reap: no line is ever given up": Mutant(
        script="reap",
        old="solo >= tonumber(ARGV[2])",
        new="solo > 1000",
        noticed_by="a_second_crash_makes_a_line_suspect_and_the_second_alone_ends_it",
    ),
    "reap: lines called off run again": Mutant(
        script="reap",
        old="if cancel ~= '' then",
        new="if false then",
        noticed_by="lines_called_off_end_wherever_they_are",
    ),
    "reap: consumers are removed with what they hold": Mutant(
        script="reap",
        old="if consumer[4] == 0 and consumer[6]",
        new="if consumer[6]",
        noticed_by="a_consumer_is_removed_only_when_it_holds_nothing",
    ),
    "reap: looks at the first thousands only": Mutant(
        script="reap",
        old="until cursor == '0-0' or taken >= 200",
        new="until true",
        noticed_by="a_lapsed_lease_is_found_behind_thousands_that_are_not",
    ),
    "release: counted as a crash": Mutant(
        script="release",
        old="if j[3] ~= '' then",
        new="redis.call('HINCRBY', P .. 'job:' .. ARGV[1], 'crashes', 1) if j[3] ~= '' then",
        noticed_by="a_released_line_goes_on_without_a_crash",
    ),
    "release: any fence": Mutant(
        script="release",
        old="if j[2] ~= ARGV[2] then return 0 end",
        new="",
        noticed_by="a_stale_execution_publishes_nothing",
    ),
    "submit: lines that are there come again": Mutant(
        script="submit",
        old="if redis.call('HSETNX', job, 'state', 'queued') == 1 then",
        new="redis.call('HSET', job, 'state', 'queued') do",
        noticed_by="lines_come_in_order_once_and_no_more_than_were_admitted",
    ),
    "submit: any fence": Mutant(
        script="submit",
        old="if b[1] ~= ARGV[2] or b[2]",
        new="if b[2]",
        noticed_by="a_steward_with_a_wrong_fence_changes_nothing",
    ),
    "submit: a gap is overlooked": Mutant(
        script="submit",
        old="first > submitted or last",
        new="last",
        noticed_by="lines_come_in_order_once_and_no_more_than_were_admitted",
    ),
    "begin: any fence": Mutant(
        script="begin",
        old="if b[1] ~= ARGV[2] or b[6]",
        new="if b[6]",
        noticed_by="a_steward_with_a_wrong_fence_changes_nothing",
    ),
    "finalize: any fence": Mutant(
        script="finalize",
        old="if b[1] ~= ARGV[2] or number",
        new="if number",
        noticed_by="a_stale_steward_cannot_withdraw_sweep_finalize_or_forget",
    ),
    "finalize: lines may be left": Mutant(
        script="finalize",
        old="or number(b[3]) ~= 0 then",
        new="then",
        noticed_by="a_line_that_finishes_after_all_counts_as_done",
    ),
    "tend: the steward before is not fenced off": Mutant(
        script="lease_batch",
        old="'fence', 1)",
        new="'fence', 0)",
        noticed_by="a_steward_with_a_wrong_fence_changes_nothing",
    ),
    "cancel: calls off twice": Mutant(
        script="cancel",
        old="if b[3] ~= '' or (",
        new="if (",
        noticed_by="lines_called_off_end_wherever_they_are",
    ),
    "cancel: what was not submitted is forgotten": Mutant(
        script="cancel",
        old="return redis.call('HINCRBY', key, 'remaining', 0 - withheld)",
        new="return 1",
        noticed_by="a_batch_that_was_never_begun_ends_when_called_off",
    ),
    "cancel: a count of -0": Mutant(
        script="cancel",
        old="'depth', tenant, 0 - lines)",
        new="'depth', tenant, -lines)",
        noticed_by="cancelling_works_before_the_end_and_changes_nothing_after",
    ),
    "withdraw: running lines are not told": Mutant(
        script="withdraw",
        old="redis.call('HSET', P .. 'job:' .. job, 'cancel', b[2])",
        new="",
        noticed_by="lines_called_off_end_wherever_they_are",
    ),
    "create: keys are not looked up": Mutant(
        script="create",
        old="if old[1] and redis",
        new="if false and redis",
        noticed_by="one_idempotency_key_makes_one_batch",
    ),
    "create: keys outlive their batch": Mutant(
        script="create",
        old="if old[1] and redis.call('EXISTS', P .. 'batch:' .. old[1]) == 1 then",
        new="if old[1] then",
        noticed_by="an_idempotency_key_is_free_again_when_its_batch_is_forgotten",
    ),
    "create: lines that ended take no room": Mutant(
        script="create",
        old="number(redis.call('GET', P .. 'held'))",
        new="number(redis.call('HGET', P .. 'depth', ':all'))",
        noticed_by="lines_that_ended_take_room_until_their_batch_is_cleaned_up",
    ),
    "sweep: room is given back twice": Mutant(
        script="sweep",
        old="if b[5] == '0' and redis",
        new="if redis",
        noticed_by="lines_that_ended_take_room_until_their_batch_is_cleaned_up",
    ),
    "purge: a batch that still runs": Mutant(
        script="purge",
        old="if not b[1] or not b[2] then",
        new="if not b[1] then",
        noticed_by="only_a_batch_that_has_ended_is_purged",
    ),
    "purge: a batch that is forgotten": Mutant(
        script="purge",
        old="if not b[1] or not b[2] then",
        new="if b[1] and not b[2] then",
        noticed_by="only_a_batch_that_has_ended_is_purged",
    ),
    "census: a lane that is missing": Mutant(
        script="census",
        old="there and redis",
        new="redis",
        noticed_by="the_census_of_a_server_that_was_emptied_counts_nothing",
    ),
    "create: keys live for ever": Mutant(
        script="create",
        old="redis.call('EXPIRE', idem, ARGV[8])",
        new="",
        noticed_by="one_idempotency_key_makes_one_batch",
    ),
    "keep: any steward": Mutant(
        script="renew_batch",
        old="~= ARGV[2] then return 0 end",
        new="== '' then return 0 end",
        noticed_by="a_steward_with_a_wrong_fence_changes_nothing",
    ),
    "retire: the turn is kept": Mutant(
        script="retire",
        old="if redis.call('GET', P .. 'solo') == ARGV[1] then",
        new="if false then",
        noticed_by="a_worker_that_retires_hands_its_turn_on",
    ),
}


def mutated(mutant: Mutant) -> dict[str, str]:
    """Sources in which the one text was there once, and is another now."""
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
    """How the check ends on the mutant; '' where it holds."""
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
async def test_a_broken_queue_breaks_its_promise(name: str, quick_server: RunningServer) -> None:
    mutant = MUTANTS[name]
    async with connected(quick_server.url) as client:
        fault = await find_fault(client, CONTRACTS[mutant.noticed_by], mutant)
    print(f"{name:50} {mutant.noticed_by}: {fault[:120]}")
    assert fault


@pytest.mark.parametrize("name", sorted({mutant.noticed_by for mutant in MUTANTS.values()}))
async def test_the_real_queue_keeps_that_promise(name: str, quick_server: RunningServer) -> None:
    async with connected(quick_server.url) as client:
        assert await find_fault(client, CONTRACTS[name], Mutant(noticed_by=name)) == ""


SOON_FOUND = (
    "done: any fence publishes",
    "beat: takes lines back",
    "claim: acknowledged before the result",
    "claim: the old fence again",
    "reap: the dead worker's fence stays good",
    "claim: what runs keeps its place in the window",
)
# Each takes half a minute of random steps; the named contracts find them at once.
LATE_FOUND = (
    "done: ended lines end again",
    "beat: renews nothing",
    "claim: suspects in a batch",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stepped_over" in metafunc.fixturenames:
        long_form = metafunc.config.getoption("--long")
        metafunc.parametrize("stepped_over", [*SOON_FOUND, *LATE_FOUND * bool(long_form)])


def test_a_broken_queue_is_found_by_random_steps_too(
    stepped_over: str, quick_server: RunningServer
) -> None:
    with pytest.raises(AssertionError):
        explore(
            quick_server,
            mutated(MUTANTS[stepped_over]),
            max_examples=60,
            stateful_step_count=40,
            phases=[Phase.generate],
            derandomize=True,
            database=None,
        )
