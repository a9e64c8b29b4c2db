"""What a server's state makes of a command: one typed error, no repetition that is not safe."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from allrounder.errors import QueueUnavailable, StartupError
from allrounder_service.api.problems import to_response
from allrounder_service.jobs.connection import connect, queue_errors, shown_address
from tests.jobs.servers import BINARIES, RunningServer, running_server

pytestmark = pytest.mark.timeout(120)

LEAK = re.compile(r"0x|/|redis|valkey|unix|\d{2,}|Error", re.IGNORECASE)
SHORT = "?socket_timeout=0.3&socket_connect_timeout=0.3"


@pytest.fixture(scope="module", params=BINARIES)
def abused(request, tmp_path_factory) -> Iterator[RunningServer]:
    """A server of this module alone, for it is brought into bad states."""
    options = {"busy-reply-threshold": "20", "maxmemory": "16mb"}
    with running_server(request.param, tmp_path_factory.mktemp("abused"), **options) as server:
        yield server


@pytest.fixture
async def client(abused) -> AsyncIterator[Redis]:
    async with connect(abused.url + SHORT) as client:
        yield client


@contextmanager
def out_of_memory(server: RunningServer) -> Iterator[None]:
    with server.client() as admin:
        admin.config_set("maxmemory", "100kb")
        try:
            yield
        finally:
            admin.config_set("maxmemory", "16mb")


@contextmanager
def stopped(server: RunningServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def read_only(server: RunningServer) -> Iterator[None]:
    with server.client() as admin:
        admin.replicaof("127.0.0.1", 1)
        try:
            yield
        finally:
            admin.replicaof("NO", "ONE")


@contextmanager
def failing_disk(server: RunningServer) -> Iterator[None]:
    """A snapshot that cannot be put in place makes the server refuse writes."""
    obstacle = server.folder / "dump.rdb"
    with server.client() as admin:
        (obstacle / "in the way").mkdir(parents=True)
        admin.config_set("save", "3600 1")
        admin.bgsave()
        while admin.info("persistence")["rdb_last_bgsave_status"] != "err":
            pass
        try:
            yield
        finally:
            admin.config_set("save", "")


@contextmanager
def busy(server: RunningServer) -> Iterator[None]:
    def loop() -> None:
        with server.client() as other, pytest.raises(ResponseError, match="killed"):
            other.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    with server.client() as admin:
        while True:
            try:
                admin.ping()
            except ResponseError:
                break
        try:
            yield
        finally:
            admin.script_kill()
            thread.join()


@contextmanager
def locked(server: RunningServer) -> Iterator[None]:
    with server.client() as admin:
        admin.config_set("requirepass", "secret")
        try:
            yield
        finally:
            admin.config_set("requirepass", "")


@contextmanager
def dead(server: RunningServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


STATES = [
    (out_of_memory, "no memory left"),
    (stopped, "in time"),
    (read_only, "read-only"),
    (failing_disk, "disk"),
    (busy, "busy"),
    (locked, "credentials"),
    (dead, "cannot be reached"),
]


@pytest.mark.parametrize(("state", "text"), STATES, ids=[state.__name__ for state, _ in STATES])
async def test_a_server_in_a_bad_state_is_a_503_with_a_fixed_text(abused, client, state, text):
    with state(abused):
        for write in (write_one, write_in_pipeline):
            with pytest.raises(QueueUnavailable, match=text) as caught, queue_errors():
                await write(client)
            assert not LEAK.search(caught.value.message)
            response = to_response(caught.value)
            assert (response.status_code, caught.value.code) == (503, "queue_unavailable")
            assert int(response.headers["retry-after"]) >= 1
    with queue_errors():
        assert await client.set("a", "b")


async def write_one(client: Redis) -> None:
    await client.xadd("stream", {"a": "b" * 1000})


async def write_in_pipeline(client: Redis) -> None:
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.ping()
        pipeline.xadd("stream", {"a": "b" * 1000})
        await pipeline.execute()


async def test_a_loading_server_is_a_503_and_then_answers(tmp_path: Path) -> None:
    options = {"loading-process-events-interval-bytes": "1024"}
    with running_server("redis-server", tmp_path, **options) as server:
        with server.client() as admin:
            for idx in range(150):
                admin.set(f"k{idx}", random.randbytes(2000))
            admin.bgrewriteaof()
            while admin.info("persistence")["aof_rewrite_in_progress"]:
                await asyncio.sleep(0.01)
        server.kill()
        server.options["key-load-delay"] = "20000"
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        texts = set()
        async with connect(server.url) as client:
            while not starting.done():
                try:
                    with queue_errors():
                        await client.dbsize()
                except QueueUnavailable as err:
                    texts.add(err.message)
                await asyncio.sleep(0.01)
            await starting
            assert "the server of batch jobs is loading its data" in texts
            assert await client.dbsize() == 150


async def test_an_unknown_script_is_a_503_too(client) -> None:
    with pytest.raises(QueueUnavailable, match="script"), queue_errors():
        await client.evalsha("0" * 40, 0)


async def test_our_own_mistakes_are_not_called_an_outage(client) -> None:
    await client.set("text", "x")
    await client.delete("s")
    await client.xgroup_create("s", "g", id="0", mkstream=True)
    for wrong in (lambda: client.xadd("text", {"a": "b"}), lambda: client.xgroup_create("s", "g")):
        with pytest.raises(ResponseError), queue_errors():
            await wrong()


async def test_a_command_whose_reply_is_lost_is_not_sent_again(abused, client) -> None:
    await client.delete("count")
    abused.pause()
    with pytest.raises(QueueUnavailable), queue_errors():
        await client.incr("count")
    abused.resume()
    await asyncio.sleep(0.05)
    assert await client.get("count") == "1"


async def test_a_late_reply_never_answers_another_command(abused, client) -> None:
    await client.mset({"a": "of a", "b": "of b"})
    abused.pause()
    for _ in range(3):
        with pytest.raises(QueueUnavailable), queue_errors():
            await client.get("a")
    abused.resume()
    assert await asyncio.gather(*(client.get("b") for _ in range(3))) == ["of b"] * 3


async def test_a_restart_between_two_commands_goes_unnoticed(abused, client) -> None:
    await client.set("a", "kept")
    await asyncio.gather(*(client.ping() for _ in range(5)))
    await asyncio.to_thread(abused.restart)
    assert await asyncio.gather(*(client.get("a") for _ in range(10))) == ["kept"] * 10


async def test_a_server_that_is_just_starting_is_tried_again(abused, monkeypatch) -> None:
    monkeypatch.setattr("allrounder_service.jobs.connection._NUM_RETRIES", 100)
    abused.kill()
    async with connect(abused.url) as client:
        reading: asyncio.Future[int] = asyncio.ensure_future(client.dbsize())
        await asyncio.to_thread(abused.start)
        assert isinstance(await reading, int)


async def test_more_commands_than_connections_wait_for_each_other(abused) -> None:
    async with connect(abused.url) as client:
        assert len(await asyncio.gather(*(client.ping() for _ in range(200)))) == 200


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_nobody_at_an_address_is_a_503(scheme: str) -> None:
    async with connect(f"{scheme}://user:secret@127.0.0.1:1/0") as client:
        with pytest.raises(QueueUnavailable, match="cannot be reached"), queue_errors():
            await client.ping()


@pytest.mark.parametrize(
    "url", ["http://h", "redis://u:secret@h?nothing=1", "redis://u:secret@h?socket_timeout=x"]
)
def test_an_address_that_cannot_be_used_refuses_the_start(url: str) -> None:
    with pytest.raises(StartupError) as caught:
        connect(url)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@h:1/2?socket_timeout=3", "redis://h:1/2"),
        ("rediss://:secret@h", "rediss://h:6379"),
        ("redis://[::1]:7000/", "redis://[::1]:7000"),
        ("unix:///a/b.sock?password=secret", "unix:///a/b.sock"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_address(url) == shown


async def test_replies_and_connections_have_the_promised_limits() -> None:
    limits = connect("redis://h").connection_pool.connection_kwargs
    assert (limits["socket_timeout"], limits["socket_connect_timeout"]) == (5, 2)


async def test_a_connection_goes_over_tcp_and_by_password(tmp_path: Path) -> None:
    port = free_port()
    with running_server("redis-server", tmp_path, port=str(port)) as server:
        with server.client() as admin:
            admin.acl_setuser(
                "u",
                enabled=True,
                passwords="+pass",
                keys=["vq:*"],
                commands=["+get", "+ping", "+client"],
            )
        async with connect(f"redis://u:pass@127.0.0.1:{port}/0") as client:
            assert await client.get("vq:x") is None
            with pytest.raises(QueueUnavailable, match="credentials"), queue_errors():
                await client.get("else")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
