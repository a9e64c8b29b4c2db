"""Controllers that crash while they finalize: `python -m tests.jobs.finalizer URL FOLDER MODE ...`.

Each is a child process. `kill ROUNDS LINES SEED` has one after the other kill itself (-9): while it
reads a response, right before it renames a file, the last one between the end of the batch and the
cleaning. `freeze` stops one before a rename, lets another finish, and wakes the first. Prints what
happened as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.facade import Jobs, JobsOptions
from allrounder_service.jobs.queue import QueueLimits

LEASE_MS = 100


def options():
    return JobsOptions(poll_seconds=0.01, queue=QueueLimits(lease_ms=LEASE_MS))


async def control(url, folder):
    """Run a batch controller until every batch is cleaned up."""
    client = connect(url)
    jobs = Jobs(client, BlobStore(folder), options())
    while True:
        if not await jobs.controller.step():
            names = [name async for name in client.scan_iter(match="vq:{v}:batch:*")]
            if {await client.hget(name, "swept") for name in names} == {"1"}:
                return
            await asyncio.sleep(0.01)


def child(url, folder, *, sig=None, event="", count=0):
    """-> its process id. It sends itself `sig` right before this event happens in the folder."""
    pid = os.fork()
    if pid:
        return pid
    seen = 0

    def watch(name, args):
        nonlocal seen
        if name == event and str(args[0]).startswith(str(folder)):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), sig)

    try:
        if event:
            sys.addaudithook(watch)
        asyncio.run(control(url, folder))
    finally:
        os._exit(0)


def kill(url, folder, rounds, num_lines, seed):
    chance = random.Random(seed)
    ended = {"killed": 0, "left_drafts": 0}
    for idx in range(rounds):
        points = [("open", chance.randint(5, num_lines)), ("os.rename", 1), ("os.rename", 2)]
        event, count = points[idx % 3] if idx < rounds - 1 else ("shutil.rmtree", 1)
        pid = child(url, folder, sig=signal.SIGKILL, event=event, count=count)
        _, status = os.waitpid(pid, 0)
        ended["killed"] += os.WIFSIGNALED(status)
        ended["left_drafts"] += bool(list((folder / "drafts").iterdir()))
    return ended


def freeze(url, folder):
    frozen = child(url, folder, sig=signal.SIGSTOP, event="os.rename", count=1)
    _, status = os.waitpid(frozen, os.WUNTRACED)
    was_stopped = os.WIFSTOPPED(status)
    other = child(url, folder)
    os.waitpid(other, 0)
    os.kill(frozen, signal.SIGCONT)
    _, status = os.waitpid(frozen, 0)
    return {"was_stopped": was_stopped, "woke_and_ended": os.WIFEXITED(status)}


if __name__ == "__main__":
    url, folder, mode, *numbers = sys.argv[1:]
    said = (kill if mode == "kill" else freeze)(url, Path(folder), *map(int, numbers))
    print(json.dumps(said))
