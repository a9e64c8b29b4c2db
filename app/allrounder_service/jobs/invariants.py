"""The invariants of the queue: they hold in Redis between any two transitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from redis.asyncio import Redis

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.records import ENDED, ENDED_BATCHES, BatchStatus, JobState
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import (
    read_hash,
    read_list,
    read_pending,
    read_ranks,
    read_stream,
    scan_hashes,
)


@dataclass(kw_only=True)
class _Scan:
    """All keys of the queue, read without a lock: only valid while no transition runs."""

    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    batches: dict[str, dict[str, str]] = field(default_factory=dict)
    listed: Counter[tuple[str, str]] = field(default_factory=Counter)
    undelivered: Counter[str] = field(default_factory=Counter)
    pending: Counter[str] = field(default_factory=Counter)
    depth: Mapping[str, str] = field(default_factory=dict)
    held: int = 0
    window: Mapping[str, str] = field(default_factory=dict)
    due: frozenset[str] = frozenset()


async def find_violations(client: Redis) -> list[str]:
    """A sentence for each violated invariant; empty where all hold."""
    scan = await _read(client)
    return [
        *(text for id in scan.jobs for text in _check_job(id, scan)),
        *(text for id in scan.batches for text in _check_batch(id, scan)),
        *_check_counts(scan),
    ]


async def _read(client: Redis) -> _Scan:
    scan = _Scan()
    scan.jobs = await scan_hashes(client, key("job", ""))
    scan.batches = await scan_hashes(client, key("batch", ""))
    for tenant in {batch["tenant"] for batch in scan.batches.values()}:
        for id in await read_list(client, key("backlog", tenant)):
            scan.listed[tenant, id] += 1
    for lane in keys.LANES:
        taken = await read_pending(client, key("lane", lane), keys.GROUP)
        for sid, fields in await read_stream(client, key("lane", lane)):
            where = scan.pending if sid in taken else scan.undelivered
            where[fields["j"]] += 1
    scan.depth = await read_hash(client, key("depth"))
    scan.held = int(await client.get(key("held")) or 0)
    scan.window = await read_hash(client, key("window"))
    scan.due = frozenset(await read_ranks(client, key(keys.DUE)))
    return scan


def _check_job(id: str, scan: _Scan) -> list[str]:
    job, wrong = scan.jobs[id], []
    state = JobState(job["state"])
    places = (_is_in_backlog(id, scan), scan.undelivered[id], scan.pending[id])
    wanted: tuple[tuple[int, int, int], ...] = ((0, 0, 0),)
    if state is JobState.QUEUED:
        wanted = ((1, 0, 0), (0, 1, 0))
        # Until the batch controller withdraws it.
        if scan.batches[job["batch"]]["ending"]:
            wanted = ((0, 0, 0), (0, 1, 0))
    elif state is JobState.RUNNING:
        wanted = ((0, 0, 1),)
    if places not in wanted:
        wrong.append(f"job {id} is {state} with backlog, undelivered, pending {places}")
    published = int(job["published"])
    if published != (1 if state in ENDED else 0):
        wrong.append(f"job {id} is {state} and was published {published} times")
    return wrong


def _is_in_backlog(id: str, scan: _Scan) -> int:
    batch_id, _, line = id.rpartition("/")
    batch = scan.batches.get(batch_id)
    if batch is None or int(line) < int(batch["next"]):
        return 0
    return scan.listed[batch["tenant"], batch_id]


def _check_batch(id: str, scan: _Scan) -> list[str]:
    batch, wrong = scan.batches[id], []
    status = BatchStatus(batch["status"])
    counts = {name: int(batch[name]) for name in ("total", "remaining", "completed", "failed")}
    if status is not BatchStatus.FAILED and counts["total"] != sum(
        counts[name] for name in ("remaining", "completed", "failed")
    ):
        wrong.append(f"batch {id} is {status} and its counts do not add up: {counts}")
    own = [job for job in scan.jobs.values() if job["batch"] == id]
    withheld = int(batch.get("withheld", 0))
    if batch["swept"] == "0":
        ended = sum(JobState(job["state"]) in ENDED for job in own) + withheld
        if ended != counts["completed"] + counts["failed"]:
            wrong.append(f"batch {id}: {ended} lines have ended, {counts} are counted")
        if len(own) != int(batch["submitted"]):
            wrong.append(f"batch {id}: {len(own)} jobs of {batch['submitted']} submitted")
    if status is BatchStatus.FINALIZING and counts["remaining"]:
        wrong.append(f"batch {id} is finalizing with {counts['remaining']} lines to go")
    waits = not batch["ending"] and int(batch["next"]) < int(batch["submitted"])
    if scan.listed[batch["tenant"], id] != int(waits):
        wrong.append(f"batch {id} is {scan.listed[batch['tenant'], id]} times in the backlog")
    if id not in scan.due:
        wrong.append(f"batch {id} is {status} and never due for a controller")
    return wrong


def _check_counts(scan: _Scan) -> list[str]:
    wrong = []
    depth: Counter[str] = Counter()
    for batch in scan.batches.values():
        if BatchStatus(batch["status"]) not in ENDED_BATCHES:
            depth[batch["tenant"]] += int(batch["remaining"])
    depth = +depth
    found = {name: int(count) for name, count in scan.depth.items() if name != ":all"}
    if found != dict(depth):
        wrong.append(f"depth says {found}, the batches hold {dict(depth)}")
    if int(scan.depth.get(":all", 0)) != sum(depth.values()):
        wrong.append(f"depth of all is {scan.depth.get(':all')}, not {sum(depth.values())}")
    whole = sum(int(each["total"]) for each in scan.batches.values() if each["swept"] == "0")
    if scan.held != whole:
        wrong.append(f"held is {scan.held}, but {whole} lines take memory")
    inside = scan.undelivered + scan.pending
    waiting = [scan.jobs[id] for id in scan.undelivered if id in scan.jobs]
    new = Counter(job["tenant"] for job in waiting if job.get("slane") == keys.LANE_BATCH)
    windows = {name: int(count) for name, count in scan.window.items()}
    if windows != dict(new):
        wrong.append(f"windows say {windows}, new lines wait in the lane: {dict(new)}")
    if strange := set(inside) - set(scan.jobs):
        wrong.append(f"lanes hold {len(strange)} entries without a job")
    return wrong
