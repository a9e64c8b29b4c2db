"""`allrounder keys` on a real file."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from starlette.datastructures import Headers
from typer.testing import CliRunner

from allrounder_service.api.auth import KeyRing
from allrounder_service.api.key_file import Scope, WatchedKeys, read_keys
from allrounder_service.cli.main import cli


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLROUNDER_API_KEYS_FILE", str(tmp_path / "keys.json"))
    return lambda *words: CliRunner().invoke(cli, ["keys", *words])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def caller(path, key):
    return KeyRing(watched=WatchedKeys(path)).caller_of(Headers({"Authorization": f"Bearer {key}"}))


def test_a_created_key_opens_what_it_was_created_for(run, path):
    words = ["create", "--tenant", "acme", "--id", "ci01", "--scope", "metrics", "--scope", "docs"]
    made = run(*words, "--expires-days", "2", "--requests-per-minute", "5")
    key = made.stdout.strip()
    assert made.exit_code == 0
    assert key.startswith("ar-ci01-")
    found = caller(path, key)
    assert (found.tenant, found.scopes) == ("acme", {Scope.METRICS, Scope.DOCS})
    assert found.limits.requests_per_minute == 5
    (record,) = read_keys(path).keys
    assert record.expires is not None
    left = record.expires - datetime.now(UTC)
    assert timedelta(days=1.9) < left <= timedelta(days=2)
    assert path.stat().st_mode & 0o777 == 0o600


def test_keys_are_listed_with_their_states_and_without_secrets(run, path):
    keys = [
        json.loads(run("create", "--tenant", "acme", "--json").stdout)["key"],
        run("create", "--tenant", "globex", "--expires-days", "0").stdout.strip(),
        run("create", "--tenant", "globex", "--id", "gone").stdout.strip(),
    ]
    assert run("revoke", "gone").stdout == "revoked gone\n"
    listed = run("list", "--json").stdout
    states = {each["id"]: each["state"] for each in json.loads(listed)}
    assert [*states.values()] == ["active", "expired", "revoked"]
    shown = listed + run("list").stdout
    for key, record in zip(keys, read_keys(path).keys, strict=True):
        assert key.split("-", 2)[2] not in shown
        assert record.sha256 not in shown
        assert record.id in shown


@pytest.mark.parametrize(
    "words",
    [
        ["create", "--tenant", "a/b"],
        ["create", "--tenant", "acme", "--id", "No"],
        ["create", "--tenant", "acme", "--id", "taken"],
        ["create", "--tenant", "acme", "--scope", "everything"],
        ["create", "--tenant", "acme", "--requests-per-minute", "-1"],
        ["create"],
        ["revoke", "unknown"],
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(run, path, words):
    assert run("create", "--tenant", "acme", "--id", "taken").exit_code == 0
    before = path.read_bytes()
    result = run(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert path.read_bytes() == before


def test_a_file_that_is_not_there_or_damaged_is_one_line(run, path):
    absent = run("list")
    assert (absent.exit_code, absent.output.count("\n")) == (1, 1)
    path.write_text("{")
    damaged = run("create", "--tenant", "acme")
    assert (damaged.exit_code, damaged.output.count("\n")) == (1, 1)
    assert path.read_text() == "{"


@pytest.mark.timeout(120)
def test_commands_at_the_same_time_lose_no_key(path):
    command = [sys.executable, "-c", "from allrounder_service.cli import main; main()"]
    words = ["keys", "create", "--tenant", "acme", "--file", str(path)]

    def create(_):
        ran = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        keys = [*pool.map(create, range(8))]
    assert all(caller(path, key).tenant == "acme" for key in keys)


@pytest.mark.timeout(60)
def test_a_server_with_a_damaged_file_says_so_and_ends(path):
    path.write_text("{")
    command = [sys.executable, "-c", "from allrounder_service.cli import main; main()"]
    ran = subprocess.run(
        [*command, "serve", "--api-keys-file", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "the file of API keys is not valid" in ran.stderr
    assert "Traceback" not in ran.stderr
