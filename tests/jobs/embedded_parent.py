"""A process with an embedded server, for tests that kill it: `python embedded_parent.py FOLDER N`.

Writes N entries, prints the server's pid once all are acknowledged, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from allrounder_service.jobs.server import QueueServer, ServerState
from allrounder_service.settings import Settings


async def main(data_dir: Path, num_entries: int) -> None:
    server = QueueServer(Settings(data_dir=data_dir))
    await server.start()
    found = await server.settled(60)
    assert found.state is ServerState.READY, found
    for idx in range(num_entries):
        await server.client.xadd("entries", {"idx": idx})
    print(server.describe().pid, flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
