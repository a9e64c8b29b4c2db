"""What `allrounder doctor` finds, and with which code it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import ROOT

CHECKS = [
    "versions",
    "processor",
    "model",
    "router",
    "memory",
    "strategies",
    "dense",
    "pruned",
]
STAGES = {"prepare", "encode", "plan", "prefill", "decode"}

pytestmark = pytest.mark.timeout(30)


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
    last = result.stdout.splitlines()[-1]
    assert last.startswith("failed  model")
    assert "no local folder" in last


def test_too_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLROUNDER_KV_BYTES_LIMIT", str(2**60))
    assert examined("--model", "random:tiny")["memory"]["status"] == "warning"
