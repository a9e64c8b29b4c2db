"""The servers that other tests rely on: real, durable, and gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.jobs.servers import BINARIES, running_server

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("binary", BINARIES)
def test_what_was_acknowledged_survives_kill_9_and_the_address_stays(
    binary: str, tmp_path: Path
) -> None:
    with running_server(binary, tmp_path / "data") as server:
        url, first = server.url, server.pid
        with server.client() as client:
            client.xgroup_create("s", "g", id="0", mkstream=True)
            for idx in range(50):
                client.xadd("s", {"idx": idx})
            client.xreadgroup("g", "c", {"s": ">"}, count=20)
        server.restart()
        assert (server.url, server.pid != first) == (url, True)
        with server.client() as client:
            assert client.xlen("s") == 50
            assert client.xpending("s", "g")["pending"] == 20
        last = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)
    assert not server.socket.exists()


def test_each_test_is_given_an_empty_server(any_server) -> None:
    with any_server.client() as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_servers_run_as_shipped_unless_told_otherwise(any_server, tmp_path: Path) -> None:
    with any_server.client() as client:
        assert client.config_get("append*")["appendfsync"] == "always"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("save") == {"save": ""}
