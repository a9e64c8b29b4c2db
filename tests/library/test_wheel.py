"""The built wheel in a plain environment, beside somebody's own package called `app`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "allrounder" / "demo" / "example.png"
READY_SECONDS = 90

pytestmark = pytest.mark.timeout(300)

USE = """
import app, allrounder, sys
assert app.OWNER == "somebody else"
assert "torch" not in sys.modules, "importing the library loads nothing"
answer = allrounder.VLM("demo").generate(sys.argv[1], "Describe the largest shape.", budget=0.5)
print(answer)
assert answer.pruning.strategy == "par" and answer.pruning.flops.prefill_ratio <= 0.5
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT)]
    subprocess.run(build, check=True, stdin=subprocess.DEVNULL, cwd=folder)
    (path,) = folder.glob("allrounder-*.whl")
    return path


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel itself is installed; its dependencies are those of the tests' own environment."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = str(folder / "bin" / "pip")
    install = [pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # What lies behind a line of a .pth file is not searched for further .pth files, so the
    # editable installation of this checkout stays out of sight.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (site / "app").mkdir()
    (site / "app" / "__init__.py").write_text('OWNER = "somebody else"\n')
    return folder


def test_its_only_top_level_packages_are_the_library_and_the_service(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "allrounder",
        "allrounder_service",
    }
    assert "allrounder/router_weights/demo/router.safetensors" in names
    assert "allrounder/demo/weights/model.safetensors" in names


def plain(folder: Path) -> dict[str, str]:
    """The environment of somebody who knows nothing of this checkout."""
    ours = ("PYTHONPATH", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"HOME": str(folder)}


def test_the_library_works_beside_a_foreign_package_called_app(venv: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", USE, str(EXAMPLE)],
        cwd=tmp_path,
        env=plain(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "blue circle" in done.stdout


def test_the_console_script_serves(venv: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(venv / "bin" / "allrounder"),
        "serve",
        "--port",
        str(port),
        "--no-embedded-redis",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=plain(tmp_path), stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, tmp_path / "log")
        with EXAMPLE.open("rb") as image:
            answer = httpx2.post(
                f"{url}/v1/chat",
                files={"image": image},
                data={"question": "Describe the largest shape.", "budget": "0.5"},
                timeout=60,
                trust_env=False,
            )
        assert answer.json()["pruning"]["strategy"] == "par"
        assert "<html" in httpx2.get(url, trust_env=False).text
    finally:
        process.terminate()
        assert process.wait(60) == 0


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx2.get(f"{url}/readyz", trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())
