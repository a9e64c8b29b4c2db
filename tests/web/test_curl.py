"""The command that is shown gives, when it is run, the answer that is shown."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.intake.pictures import red
from tests.web.asking import EXAMPLES, ask, choose_example, set_budget
from tests.web.conftest import Server, Visits
from tests.web.test_playground import hand_over

pytestmark = pytest.mark.timeout(90)


def run(command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer: str = json.loads(done.stdout)["answer"]
    return answer


def test_the_command_of_an_example_a_file_and_a_pasted_picture_works(
    visit: Visits, tmp_path: Path
) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    name = 'it\'s mine; "2".webp'
    content = (EXAMPLES / "scene-24.webp").read_bytes()
    (tmp_path / name).write_bytes(content)
    for source in ("example", "drop", "paste"):
        if source == "example":
            choose_example(page, 2)
        else:
            with page.expect_response("**/v1/plan"):
                hand_over(page, name, content, source)
            page.locator("#question").fill('@what\'s $HOME;type=\n`the` biggest "shape"?')
            set_budget(page, 25)
        answer = ask(page)
        page.get_by_role("button", name="Copy").click()
        expect(page.locator("#curl-note")).to_have_text("Copied.")
        command = page.evaluate("navigator.clipboard.readText()")
        assert run(command, tmp_path) == answer, command


def test_the_command_names_the_key_without_showing_it(
    refused_visit: Visits, fake_server: Callable[..., Server], tmp_path: Path
) -> None:
    guarded = fake_server(ALLROUNDER_API_KEYS="alpha,beta")
    page = refused_visit(url=guarded.url, ready="#key")
    expect(page.get_by_label("This server asks for an API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("not accepted")
    page.get_by_label("This server asks for an API key").fill("beta")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#key-form")).to_be_hidden()
    with page.expect_response("**/v1/plan"):
        hand_over(page, "red.png", red(), "drop", "image/png")
    page.locator("#question").fill("red or blue")
    answer = ask(page)
    command = page.locator("#curl").inner_text()
    assert "beta" not in command
    (tmp_path / "red.png").write_bytes(red())
    assert run(command, tmp_path, ALLROUNDER_API_KEY="alpha") == answer
    assert page.evaluate("[sessionStorage.length, Object.values(localStorage).join()]") == [1, ""]
