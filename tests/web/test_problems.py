"""What goes wrong is said in words, beside the field, with the way on."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.api.calls import chat_body
from tests.web.asking import ask, choose_example
from tests.web.conftest import Server, Visits
from tests.web.test_playground import hand_over

pytestmark = pytest.mark.timeout(90)

LONG = "word " * 60


def notice(page: Page) -> str:
    shown = page.get_by_role("alert")
    expect(shown).to_be_visible()
    return shown.inner_text()


def until(holds: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_file_that_is_no_picture_is_refused_and_the_next_picture_works(
    refused_visit: Visits,
) -> None:
    page = refused_visit()
    hand_over(page, "notes.txt", b"not a picture", "drop", "text/plain")
    text = notice(page)
    assert "Please check: image" in text
    expect(page.locator("#file")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#picture")).to_have_text("This file cannot be shown as a picture.")
    choose_example(page, 0)
    expect(page.get_by_role("alert")).to_be_hidden()
    assert ask(page)


def test_a_budget_too_small_for_the_question_comes_with_one_that_is_enough(
    refused_visit: Visits,
) -> None:
    page = refused_visit()
    page.locator("#budget").press("Home")
    with page.expect_response("**/v1/plan"):
        page.locator("#question").fill("What is it? " * 40)
    assert "The budget is too small" in notice(page)
    expect(page.locator("#budget")).to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Use ").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    ask(page)
    expect(page.locator("#compute .note")).to_contain_text("were allowed")


def test_an_option_that_a_strategy_does_not_take_is_the_servers_word(
    refused_visit: Visits,
) -> None:
    page = refused_visit()
    page.locator("#advanced summary").click()
    page.get_by_label("Tokens and layers by").select_option("fastv")
    with page.expect_response("**/v1/plan"):
        page.get_by_label("layer", exact=True).fill("deep")
    assert "layer" in notice(page)
    expect(page.get_by_label("layer", exact=True)).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert")).to_be_in_viewport()


def test_a_killed_server_is_a_lost_connection_with_another_try(
    refused_visit: Visits, fake_server: Callable[..., Server]
) -> None:
    fake = fake_server()
    page = refused_visit(url=fake.url)
    page.locator("#budget").press("End")
    page.locator("#question").fill(LONG)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".answer-text")).to_contain_text("word word")
    fake.process.kill()
    assert "The connection broke" in notice(page)
    page.get_by_role("button", name="Try again").click()
    assert "cannot be reached" in notice(page)
    expect(page.locator("#server-text")).to_have_text("not reachable")


def test_a_full_queue_and_a_stopping_server_say_when_to_come_back(
    refused_visit: Visits, fake_server: Callable[..., Server]
) -> None:
    fake = fake_server(ALLROUNDER_MAX_RUNNING="1", ALLROUNDER_MAX_QUEUE="1")
    page = refused_visit(url=fake.url)
    threads = [
        threading.Thread(
            target=fake.client.post,
            args=("/v1/chat",),
            kwargs={"json": chat_body(question=LONG * 3)},
        )
        for _ in range(2)
    ]
    for thread, taken in zip(
        threads, ("num_requests_running", "num_requests_waiting"), strict=True
    ):
        thread.start()
        until(lambda taken=taken: gauge(fake, taken) == 1)  # type: ignore[misc]
    page.get_by_role("button", name="Ask", exact=True).click()
    assert "The server is busy" in notice(page)
    expect(page.get_by_role("button", name="Try again in")).to_be_disabled()
    fake.process.send_signal(signal.SIGTERM)
    until(lambda: fake.client.get("/readyz").status_code == 503)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The server is stopping")
    for thread in threads:
        thread.join()


def gauge(fake: Server, name: str) -> float:
    """Summed over its labels."""
    lines = fake.client.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if re.match(rf"allrounder_{name}[ {{]", line)
    )


def test_stop_keeps_what_was_written_and_frees_the_server(
    visit: Visits, fake_server: Callable[..., Server]
) -> None:
    fake = fake_server()
    page = visit(url=fake.url)
    page.locator("#budget").press("End")
    page.locator("#question").fill(LONG * 3)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".answer-text")).to_contain_text("word word")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".facts")).to_have_text("stopped by you")
    expect(page.locator("#answer")).to_contain_text("word word")
    until(lambda: gauge(fake, "num_requests_running") == 0, seconds=3)
    page.locator("#question").fill("red or blue")
    assert ask(page) == "red or blue"
