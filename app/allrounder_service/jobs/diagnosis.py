"""Examines the server of batch jobs as `serve` would use it."""

from __future__ import annotations

from dataclasses import replace

from allrounder.errors import QueueUnavailable
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.embedded.folder import DataFolder
from allrounder_service.jobs.features import examine_server
from allrounder_service.jobs.server import QueueServer, ServerDescription, State
from allrounder_service.settings import Settings

PATIENCE_SECONDS = 10.0


async def examine_queue(settings: Settings) -> ServerDescription:
    """What `serve` would find. An embedded server is started and stopped again.

    Where a service that runs already owns it, that one is asked: IN_USE, with its facts.
    Raises: StartupError for a redis_url that cannot be used.
    """
    server = QueueServer(settings)
    await server.start()
    try:
        found = await server.settled(PATIENCE_SECONDS)
    finally:
        await server.stop()
    return await _visit(settings, found) if found.state is State.IN_USE else found


async def _visit(settings: Settings, found: ServerDescription) -> ServerDescription:
    folder = DataFolder.of(settings)
    folder.open()
    client = connect(folder.url)
    try:
        return replace(found, facts=await examine_server(client))
    except QueueUnavailable as err:
        return replace(found, state=State.AWAY, reason=err.message)
    finally:
        await client.aclose()
        folder.close()
