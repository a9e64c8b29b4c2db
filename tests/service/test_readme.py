"""The README's commands do what it says and print what it shows."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import Service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
VOLATILE = ("id", "created", "timing")


def _block(language: str, holding: str) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if holding in block)


def test_the_two_commands_stand_before_line_20() -> None:
    head = README.splitlines()[:20]
    assert any(line.startswith("make serve") for line in head)
    assert any(line.startswith("make test") for line in head)


@pytest.mark.timeout(60)
def test_the_curl_prints_the_answer_that_is_shown(service: Service) -> None:
    words = shlex.split(_block("sh", "curl").replace("\\\n", " "))
    fields = dict(word.split("=", 1) for flag, word in itertools.pairwise(words) if flag == "-F")
    image = fields.pop("image").removeprefix("@")
    answer = service.post(
        "/v1/chat", files={"image": (ROOT / image).read_bytes()}, data=fields
    ).json()
    shown: dict[str, Any] = json.loads(_block("json", '"answer"'))
    assert answer.keys() == shown.keys()
    for key in VOLATILE:
        answer.pop(key)
        shown.pop(key)
    assert answer == shown


def _run(live_url: str, *command: str, folder: Path = ROOT) -> str:
    script = command[-1].replace("http://127.0.0.1:8000", live_url)
    ran = subprocess.run(
        [*command[:-1], script], cwd=folder, check=True, capture_output=True, text=True
    )
    return ran.stdout


@pytest.mark.timeout(180)
def test_the_sdk_prints_what_is_shown_and_curl_gets_the_same(live_url: str) -> None:
    shown = _block("text", "'total'")
    assert _run(live_url, sys.executable, "-c", _block("python", "OpenAI(")) == shown
    completion = json.loads(_run(live_url, "sh", "-c", _block("sh", "/v1/chat/completions")))
    assert completion["choices"][0]["message"]["content"] == shown.splitlines()[0]
    assert str(completion["pruning"]["visual_tokens"]) == shown.splitlines()[1]


@pytest.mark.timeout(180)
def test_the_batch_prints_what_is_shown_and_curl_submits_it_again(
    batch_url: str, tmp_path: Path
) -> None:
    (tmp_path / "allrounder").symlink_to(ROOT / "allrounder")
    shown = _block("text", "completed 3 of 3")
    script = _block("python", "client.batches.create")
    assert _run(batch_url, sys.executable, "-c", script, folder=tmp_path) == shown
    listed = _run(batch_url, "sh", "-c", _block("sh", "v1/batches"), folder=tmp_path)
    *_, last = [json.loads(each) for each in listed.replace("}{", "}\n{").splitlines()]
    assert [batch["request_counts"]["total"] for batch in last["data"]] == [3, 3]


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
