"""The reference at /docs holds what /openapi.json says, and its examples work."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.web.conftest import Server, Visits

pytestmark = pytest.mark.timeout(90)


def test_every_endpoint_field_and_error_is_listed(server: Server, visit: Visits) -> None:
    described = server.client.get("/openapi.json").json()
    page = visit("/docs", ready="#endpoints[aria-busy=false]")
    operations = [
        (verb, path, operation)
        for path, item in described["paths"].items()
        for verb, operation in item.items()
    ]
    expect(page.locator("#endpoints > section")).to_have_count(len(operations) + 1)
    contents = page.locator("#contents").inner_text().replace("\n", " ")
    for verb, path, operation in operations:
        assert f"{verb.upper()} {path}" in contents
        section = page.locator("section", has=page.locator("h2", has_text=path).first).filter(
            has=page.locator(f".verb.{verb}")
        )
        text = section.filter(has=page.get_by_role("heading", name=path, exact=False)).first
        refused = [status for status in operation["responses"] if status >= "300"]
        assert set(refused) <= set(text.locator("dt").all_text_contents())
    chat = page.locator("#post--v1-chat")
    body = described["paths"]["/v1/chat"]["post"]["requestBody"]["content"]["application/json"]
    names = set(chat.locator("td:first-child").all_text_contents())
    assert set(body["schema"]["properties"]) - {"question"} <= names
    assert {"questionrequired", "budget.flops", "budget.quality"} <= names
    assert "pruning.flops.saved" in "\n".join(names)


def test_an_example_is_sent_from_the_page(visit: Visits) -> None:
    page = visit("/docs", ready="#endpoints[aria-busy=false]")
    for section, expected in (
        ("#post--v1-chat", '"answer":'),
        ("#post--v1-plan", '"decisions":'),
        ("#get--v1-models", '"smallest_budget":'),
        ("#get--metrics", "# HELP allrounder_"),
    ):
        box = page.locator(section)
        box.get_by_text("Try it").click()
        box.get_by_role("button", name="Send").click()
        expect(box.locator(".try .tag")).to_contain_text("200")
        expect(box.locator(".try pre")).to_contain_text(expected)


def test_parameters_of_the_path_and_the_header_are_sent(refused_visit: Visits) -> None:
    page = refused_visit("/docs", ready="#endpoints[aria-busy=false]")
    box = page.locator("#post--v1-batches")
    box.get_by_text("Try it").click()
    for key in ("order-7", ""):
        box.get_by_label("Idempotency-Key").fill(key)
        with page.expect_request("**/v1/batches") as sent:
            box.get_by_role("button", name="Send").click()
        assert sent.value.headers.get("idempotency-key", "") == key
        assert sent.value.headers["content-type"] == "application/json"
        expect(box.locator(".try .tag")).to_be_visible()
    box = page.locator("#get--v1-batches-batch_id-")
    box.get_by_text("Try it").click()
    box.get_by_label("batch_id").fill("a/b")
    with page.expect_request("**/v1/batches/a%2Fb"):
        box.get_by_role("button", name="Send").click()


def test_the_example_of_a_completion_names_the_model_that_is_served(
    fake_server: Callable[..., Server], refused_visit: Visits
) -> None:
    server = fake_server(ALLROUNDER_API_KEYS="alpha")
    page = refused_visit("/docs", url=server.url, ready="#endpoints[aria-busy=false]")
    box = page.locator("#post--v1-chat-completions")
    box.get_by_text("Try it").click()
    box.get_by_role("button", name="Send").click()
    expect(box.locator(".try .tag")).to_contain_text("401")
    box.get_by_label("API key").fill("alpha")
    box.get_by_role("button", name="Use this key").click()
    expect(box.get_by_label("Body", exact=True)).to_have_value(re.compile('"model": "fake"'))
    expect(box.locator(".try .tag")).to_contain_text("400")
    expect(box.locator(".try pre")).to_contain_text("budget_too_small")
    body = box.get_by_label("Body", exact=True).input_value()
    box.get_by_label("Body", exact=True).fill(body.replace('"budget": 0.5', '"budget": 0.9'))
    box.get_by_role("button", name="Send").click()
    expect(box.locator(".try .tag")).to_contain_text("200")
    expect(box.locator(".try pre")).to_contain_text('"model": "fake"')
    page.reload()
    page.wait_for_selector("#endpoints[aria-busy=false]")
    box.get_by_text("Try it").click()
    expect(box.get_by_label("Body", exact=True)).to_have_value(re.compile('"model": "fake"'))


def test_a_protected_description_is_shown_to_those_with_a_key(
    fake_server: Callable[..., Server], refused_visit: Visits
) -> None:
    server = fake_server(ALLROUNDER_API_KEYS="alpha", ALLROUNDER_PROTECT_DOCS="true")
    page = refused_visit("/docs", url=server.url, ready="[role=alert]")
    expect(page.get_by_role("alert")).to_contain_text("scope docs")
    page.get_by_role("link", name="Give one in the playground").click()
    page.get_by_label("API key").fill("alpha")
    page.get_by_label("API key").press("Enter")
    expect(page.locator("#key-form")).to_be_hidden()
    page.goto(f"{server.url}/docs")
    page.wait_for_selector("#endpoints[aria-busy=false]")
    assert page.locator("#post--v1-chat").count() == 1
