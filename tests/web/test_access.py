"""No serious finding of axe on any page, theme or size; all of it fits a phone."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.web.asking import ask
from tests.web.conftest import Visits

pytestmark = pytest.mark.timeout(90)

DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 360, "height": 740}
VIEWS: list[tuple[str, dict[str, Any]]] = [
    ("light", {"viewport": DESKTOP, "color_scheme": "light"}),
    ("dark", {"viewport": DESKTOP, "color_scheme": "dark"}),
    ("phone", {"viewport": PHONE, "color_scheme": "light", "has_touch": True, "is_mobile": True}),
]


def findings(page: Page) -> list[str]:
    return [
        f"{each['id']} ({each['impact']}): {[node['target'] for node in each['nodes'][:3]]}"
        for each in Axe().run(page).response["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def assert_it_fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("view", [view for _, view in VIEWS], ids=[name for name, _ in VIEWS])
def test_the_playground_has_no_serious_finding(refused_visit: Visits, view: dict[str, Any]) -> None:
    page = refused_visit(**view)
    ask(page)
    page.locator("#advanced summary").click()
    page.get_by_label("Tokens and layers by").select_option("fastv")
    page.get_by_label("layer", exact=True).fill("deep")
    expect(page.get_by_role("alert")).to_be_visible()
    assert findings(page) == []
    assert_it_fits(page)
    page.get_by_label("Tokens and layers by").select_option("random")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="Sweep").click()
    expect(page.locator("#said")).to_contain_text("The sweep is done")
    assert findings(page) == []
    assert_it_fits(page)


@pytest.mark.parametrize("view", [view for _, view in VIEWS[1:]], ids=["dark", "phone"])
def test_the_reference_has_no_serious_finding(visit: Visits, view: dict[str, Any]) -> None:
    page = visit("/docs", ready="#endpoints[aria-busy=false]", **view)
    page.locator("details").evaluate_all("(all) => all.forEach((one) => { one.open = true; })")
    expect(page.locator("#get--v1-models").get_by_role("button", name="Send")).to_be_visible()
    assert findings(page) == []
    assert_it_fits(page)
