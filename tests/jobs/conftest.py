"""Servers that the tests of one run share: one of each program, emptied before each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.jobs.servers import BINARIES, RunningServer, running_server


@pytest.fixture(scope="session")
def shared_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], RunningServer]]:
    """The server of a program, started at its first use in the run."""
    running = {}

    def of(binary: str) -> RunningServer:
        if binary not in running:
            context = running_server(binary, tmp_path_factory.mktemp(binary))
            running[binary] = context, context.__enter__()
        return running[binary][1]

    yield of
    for context, _ in running.values():
        context.__exit__(None, None, None)


@pytest.fixture(params=BINARIES)
def any_server(
    request: pytest.FixtureRequest, shared_server: Callable[[str], RunningServer]
) -> RunningServer:
    """Each program in turn, empty. Do not kill or reconfigure it: use `running_server` for that."""
    server = shared_server(request.param)
    server.flush()
    return server


@pytest.fixture
def server(shared_server: Callable[[str], RunningServer]) -> RunningServer:
    """The first program alone, empty: for tests in which the program makes no difference."""
    server = shared_server(BINARIES[0])
    server.flush()
    return server


@pytest.fixture
def redis_url(server: RunningServer) -> str:
    """unix:// address of an empty server."""
    return server.url


@pytest.fixture
def any_redis_url(any_server: RunningServer) -> str:
    """unix:// address of an empty server, once for each program."""
    return any_server.url


@pytest.fixture(autouse=True)
def may_embed(monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> None:
    """As by default; elsewhere in the tests no app starts a server that nobody asked for."""
    monkeypatch.setenv("ALLROUNDER_EMBEDDED_REDIS", "true")
