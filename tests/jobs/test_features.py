"""What a server can do is tried, not read from its version; how it is set up is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from allrounder.errors import QueueUnavailable, QueueUnsupported
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.server import examine_server
from tests.jobs.servers import running_server

pytestmark = pytest.mark.timeout(120)


async def test_both_programs_have_what_jobs_need_and_say_how_they_are_set_up(any_server) -> None:
    async with connect(any_server.url) as client:
        facts = await examine_server(client)
        assert await client.dbsize() == 0
    assert (facts.appendonly, facts.appendfsync) == (True, "always")
    assert (facts.maxmemory_policy, facts.maxmemory) == ("noeviction", 256 * 2**20)
    assert facts.program == ("redis" if any_server.binary.name == "redis-server" else "valkey")
    assert facts.version[0].isdigit()
    assert facts.used_memory is not None
    assert facts.used_memory > 0
    assert facts.fsync_ms is not None
    assert facts.fsync_ms >= 0
    assert facts.warnings == ()


async def test_a_server_that_may_lose_jobs_is_warned_of(tmp_path: Path) -> None:
    options = {"maxmemory": "0", "appendfsync": "everysec", "maxmemory_policy": "allkeys-lru"}
    with running_server("redis-server", tmp_path, **options) as server:
        async with connect(server.url) as client:
            warnings = " ".join((await examine_server(client)).warnings)
            assert "appendfsync is everysec" in warnings
            assert "maxmemory-policy is allkeys-lru" in warnings
            assert "no maxmemory" in warnings
            await client.config_set("appendonly", "no")
            assert "appendonly is off" in " ".join((await examine_server(client)).warnings)


async def test_a_full_server_is_still_examined_and_said_to_be_full(any_server) -> None:
    async with connect(any_server.url) as client:
        await client.config_set("maxmemory", "100kb")
        try:
            facts = await examine_server(client)
        finally:
            await client.config_set("maxmemory", "256mb")
    assert facts.fsync_ms is None
    assert facts.warnings == ("more than 70% of its memory is used",)


async def test_a_server_without_a_needed_command_is_unsupported(tmp_path: Path) -> None:
    with running_server("redis-server", tmp_path, rename_command=("XAUTOCLAIM", "")) as server:
        async with connect(server.url) as client:
            with pytest.raises(QueueUnsupported, match=r"Redis 7\.0") as caught:
                await examine_server(client)
    assert (caught.value.status, caught.value.code) == (503, "queue_unavailable")
    assert not caught.value.retryable


async def test_a_server_that_keeps_its_configuration_to_itself_will_do(tmp_path: Path) -> None:
    with running_server("redis-server", tmp_path, rename_command=("CONFIG", "")) as server:
        async with connect(server.url) as client:
            facts = await examine_server(client)
    assert (facts.appendfsync, facts.appendonly, facts.warnings) == (None, True, ())


async def test_a_user_limited_to_the_keys_of_jobs_will_do(tmp_path: Path) -> None:
    with running_server("redis-server", tmp_path) as server:
        with server.client() as admin:
            admin.acl_setuser(
                "allrounder",
                enabled=True,
                passwords="+pass",
                keys=["vq:*"],
                commands=["+info", "+config|get"],
                categories=["+@all", "-@dangerous"],
            )
            url = f"{server.url}?username=allrounder&password=pass"
        async with connect(url) as client:
            assert (await examine_server(client)).appendfsync == "always"


async def test_a_server_that_is_away_is_unavailable() -> None:
    async with connect("redis://127.0.0.1:1") as client:
        with pytest.raises(QueueUnavailable):
            await examine_server(client)
