"""A result is shown as the result of what was asked, whatever was changed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.web.asking import EXAMPLES, INDEX, api_answer, ask, choose_example, num_kept, num_veiled
from tests.web.conftest import Server, Visits

pytestmark = pytest.mark.timeout(90)


@contextmanager
def held(page: Page, button: str) -> Iterator[None]:
    """Presses `button`; its requests wait until the block ends, and then a plan must come."""
    page.route("**/v1/chat", lambda _: None)
    with page.expect_request("**/v1/chat"):
        page.get_by_role("button", name=button, exact=True).click()
    yield
    with page.expect_response("**/v1/plan"):
        # What is still waiting goes on to the server.
        page.unroute("**/v1/chat")


def chats_of(page: Page) -> list[dict[str, Any]]:
    """Fills up with the bodies of the questions that the page asks."""
    bodies: list[dict[str, Any]] = []

    def note(sent: Request) -> None:
        if sent.url.endswith("/v1/chat"):
            assert sent.post_data is not None
            bodies.append(json.loads(sent.post_data))

    page.on("request", note)
    return bodies


def expect_old(page: Page, note: str) -> None:
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#outcome .old")).to_have_text(note)
    for text in page.locator("#outcome .answer-text").all():
        assert "stale" in (text.get_attribute("class") or "")


def kept_by_api(server: Server, example: dict[str, str], question: str, budget: float) -> int:
    content = (EXAMPLES / example["file"]).read_bytes()
    pruning = api_answer(server, content, question, budget)["pruning"]
    kept: int = pruning["visual_tokens"]["kept"]
    return kept


def test_a_slider_moved_during_a_run_gets_its_own_plan_and_the_answer_is_marked(
    server: Server, visit: Visits
) -> None:
    page = visit()
    example = choose_example(page, 2)
    with held(page, "Ask"):
        page.locator("#budget").fill("0.2")
    expect_old(page, "before the last change")
    expect(page.locator("#stage-of")).to_have_text("plan")
    expect(page.locator("#compute .note")).to_contain_text("20% were allowed")
    assert num_kept(page) == kept_by_api(server, example, example["question"], 0.2)
    content = (EXAMPLES / example["file"]).read_bytes()
    asked = api_answer(server, content, example["question"], 0.5)["answer"]
    expect(page.locator("#answer")).to_have_text(asked)


def test_a_picture_chosen_during_a_run_is_not_veiled_by_the_one_before(
    server: Server, visit: Visits
) -> None:
    page = visit()
    choose_example(page, 2)
    with held(page, "Ask"):
        page.locator("#examples button").nth(5).click()
        expect(page.locator("#picture img")).to_have_attribute("alt", INDEX[5]["alt"])
        expect(page.locator("#picture path.veil")).to_have_count(0)
    expect_old(page, "about the picture before")
    expect(page.locator("#stage-of")).to_have_text("plan")
    kept = kept_by_api(server, INDEX[5], INDEX[5]["question"], 0.5)
    assert num_kept(page) == kept
    assert (
        num_veiled(page) == int(page.locator("#picture-caption b").inner_text().split()[2]) - kept
    )


def test_a_question_edited_after_an_answer_marks_it_and_during_a_run_too(visit: Visits) -> None:
    page = visit()
    ask(page)
    with page.expect_response("**/v1/plan"):
        page.locator("#question").press_sequentially(" Say why.")
    expect_old(page, "before the last change")
    with held(page, "Ask"):
        expect(page.locator("#outcome .old")).to_have_count(0)
        page.locator("#question").fill("What is it?")
    expect_old(page, "before the last change")


def test_both_sides_of_a_comparison_are_asked_the_same(visit: Visits) -> None:
    page = visit()
    choose_example(page, 11)
    asked = chats_of(page)
    with held(page, "Compare"):
        page.locator("#question").fill("What is it?")
        page.locator("#budget").fill("0.2")
    expect_old(page, "before the last change")
    assert [each["question"] for each in asked] == [INDEX[11]["question"]] * 2
    assert [each["budget"] for each in asked] == [1, 0.5]
    expect(page.locator("#compute .note")).to_contain_text("20% were allowed")


def test_points_of_an_older_sweep_stay_off_another_picture(visit: Visits) -> None:
    page = visit()
    choose_example(page, 11)
    asked = chats_of(page)
    with held(page, "Sweep"):
        page.locator("#examples button").nth(5).click()
        expect(page.locator("#picture img")).to_have_attribute("alt", INDEX[5]["alt"])
    expect_old(page, "about the picture before")
    assert [each["question"] for each in asked] == [INDEX[11]["question"]] * 8
    assert len({str(each["image"]) for each in asked}) == 1
    kept = num_kept(page)
    page.locator("#sweep-table tbody tr").nth(6).get_by_role("button").click()
    assert num_kept(page) == kept
    expect(page.locator("#stage-of")).to_have_text("plan")
    expect_old(page, "about the picture before")


def test_stopping_after_a_change_shows_the_plan_of_the_change(visit: Visits) -> None:
    page = visit()
    page.route("**/v1/chat", lambda route: None)
    with page.expect_request("**/v1/chat"):
        page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#budget").fill("0.2")
    with page.expect_response("**/v1/plan"):
        page.get_by_role("button", name="Stop").click()
    expect(page.locator("#compute .note")).to_contain_text("20% were allowed")


def test_the_plan_after_a_failed_run_leaves_the_reason_of_the_failure(
    refused_visit: Visits,
) -> None:
    page = refused_visit()
    waiting: list[Route] = []
    page.route("**/v1/chat", lambda route: waiting.append(route))
    with page.expect_request("**/v1/chat"):
        page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#budget").fill("0.2")
    with page.expect_response("**/v1/plan"):
        waiting[0].abort()
    expect(page.locator("#compute .note")).to_contain_text("20% were allowed")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
