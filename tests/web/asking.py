"""What a visitor does on the page, and what the API says to the same."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, expect

from tests.web.conftest import ROOT, Server

EXAMPLES = ROOT / "app" / "allrounder_service" / "web" / "examples"
INDEX: list[dict[str, str]] = json.loads((EXAMPLES / "examples.json").read_text())


def choose_example(page: Page, number: int) -> dict[str, str]:
    """Click it and wait until its plan is shown."""
    with page.expect_response("**/v1/plan"):
        page.locator("#examples button").nth(number).click()
    return INDEX[number]


def ask(page: Page) -> str:
    page.get_by_role("button", name="Ask", exact=True).click()
    return answer_of(page)


def answer_of(page: Page) -> str:
    answer = page.locator("#answer:not(.stale)")
    expect(answer).to_be_visible()
    expect(page.locator("#stage-of")).to_have_text("answer")
    return answer.inner_text()


def api_answer(server: Server, picture: bytes, question: str, budget: Any) -> dict[str, Any]:
    response = server.client.post(
        "/v1/chat",
        files={"image": picture},
        data={"question": question, "budget": json.dumps(budget), "explain": "true"},
    )
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def set_budget(page: Page, percent: int) -> None:
    """Move the slider as a drag would, and wait for the plan."""
    with page.expect_response("**/v1/plan"):
        page.locator("#budget").fill(str(percent / 100))


def num_kept(page: Page) -> int:
    return int(page.locator("#picture-caption b").inner_text().split()[0])


def num_veiled(page: Page) -> int:
    return page.locator("#picture path.veil").get_attribute("d", timeout=2000).count("M")  # type: ignore[union-attr]
