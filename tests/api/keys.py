"""Key files as tests write them, and real servers with a port of their own."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, nullcontext

import uvicorn

from allrounder_service.api.auth import issue_key
from allrounder_service.api.key_file import edit_keys
from allrounder_service.api.transport import TransportLimits, protocol_with


def add_key(path, *, tenant="acme", **fields):
    """-> the text of a new key in the file."""
    made = issue_key(tenant=tenant, **fields)
    with edit_keys(path) as keys:
        keys[made.record.id] = made.record
    return made.text


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


class _QuietServer(uvicorn.Server):
    def capture_signals(self):
        return nullcontext()


@asynccontextmanager
async def listening(app, *, max_connections=50, head_seconds=0.4, stall_seconds=60.0):
    """-> the port on which a started app answers behind our own protocol."""
    limits = TransportLimits(
        max_header_bytes=8192,
        max_connections=max_connections,
        head_seconds=head_seconds,
        stall_seconds=stall_seconds,
    )
    config = uvicorn.Config(
        app,
        http=protocol_with(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=1,
    )
    server = _QuietServer(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task
