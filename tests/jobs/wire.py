"""A network that fails: a proxy between client and server that can be cut or turned into a hole."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

_CHUNK = 1 << 16


class Wire:
    """Listens on a loopback port and forwards to a unix socket, until told otherwise."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._open: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._cut = False
        self.num_connections = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._drop()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """Every connection is reset, and new ones are too."""
        self._cut = True
        await self._drop()

    def swallow(self) -> None:
        """Connections stay open and new ones are accepted, but nothing goes through."""
        self._flows.clear()

    async def mend(self) -> None:
        """As a network does: what was in flight is lost with its connection."""
        if not self._flows.is_set():
            await self._drop()
        self._flows.set()
        self._cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        if self._cut:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            to_server = await asyncio.open_unix_connection(self._socket)
            await self._forward(reader, writer, *to_server)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        ways = [
            asyncio.create_task(self._pump(reader, server_writer)),
            asyncio.create_task(self._pump(server_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            server_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()

    async def _drop(self) -> None:
        dropped = list(self._open)
        for task in dropped:
            task.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)
