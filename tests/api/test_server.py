"""The process as an operator sees it: signals, exit codes, log lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from allrounder_service.cli.main import cli
from allrounder_service.main import EXIT_ENGINE_FAILED
from tests.api.calls import chat_body, events
from tests.intake.pictures import red

ROOT = Path(__file__).parents[2]


@contextmanager
def server_process(log_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.api.fake_server"],
            cwd=ROOT,
            env={**os.environ, "ALLROUNDER_PORT": str(port)},
            stderr=log,
        )
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=8) as client:
                until_ready(client, process)
                yield process, client
        finally:
            process.kill()
            process.wait()


def until_ready(client, process):
    while process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx2.ConnectError:
            time.sleep(0.02)
    raise AssertionError("the server ended before it was ready")


@pytest.mark.timeout(30)
def test_a_terminated_server_drains_in_sight_of_its_probes_and_exits_cleanly(tmp_path):
    log = tmp_path / "log"
    with server_process(log) as (process, client):
        body = chat_body(stream=True, question="word " * 20)
        with client.stream("POST", "/v1/chat", json=body) as response:
            lines = response.iter_text()
            text = next(lines)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            ready = client.get("/readyz")
            text += "".join(lines)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
        assert events(text)[-1] == "[DONE]"
        assert json.loads(events(text)[-2])["finish_reason"] == "stop"
        assert process.wait(8) == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    (chat,) = [entry for entry in entries if entry.get("endpoint") == "/v1/chat"]
    assert (chat["status"], chat["request_id"][:4]) == (200, "req-")
    assert "word word" not in log.read_text()


@pytest.mark.timeout(30)
def test_the_commands_send_any_form_of_budget(tmp_path):
    picture = tmp_path / "red.png"
    picture.write_bytes(red())
    with server_process(tmp_path / "log") as (_, client):
        common = ["--image", str(picture), "--question", "a b", "--url", str(client.base_url)]
        quality = ["--budget", '{"quality": 0.7}']
        chat = CliRunner().invoke(cli, ["chat", *common, *quality])
        plan = CliRunner().invoke(cli, ["plan", *common, *quality])
        wrong = CliRunner().invoke(cli, ["plan", *common, "--budget", '{"quality": 2}'])
    assert (chat.stdout, chat.exit_code) == ("a b\n", 0)
    assert "12 of 16 visual tokens" in chat.stderr
    assert "loyalty 0.750" in chat.stderr
    assert json.loads(plan.stdout)["pruning"]["budget"]["expected_loyalty"] == 0.75
    assert wrong.exit_code == 1
    assert json.loads(wrong.stderr)["error"]["param"] == "budget.quality"


@pytest.mark.timeout(30)
def test_a_dead_engine_ends_the_process_with_a_code_of_its_own(tmp_path):
    with server_process(tmp_path / "log") as (process, client):
        response = client.post("/v1/chat", json=chat_body(question="boom"))
        assert response.json()["error"]["code"] == "step_failed"
        assert process.wait(8) == EXIT_ENGINE_FAILED
