"""The playground does what it offers, with real answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.web.asking import (
    EXAMPLES,
    INDEX,
    answer_of,
    api_answer,
    ask,
    choose_example,
    num_kept,
    num_veiled,
    set_budget,
)
from tests.web.conftest import Server, Visits

pytestmark = pytest.mark.timeout(90)

HAND_OVER = """([name, type, data, kind]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    const event = kind === "drop"
        ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
}"""


def hand_over(page: Page, name: str, content: bytes, kind: str, type_: str = "image/webp") -> None:
    page.evaluate(HAND_OVER, [name, type_, base64.b64encode(content).decode(), kind])


def test_an_example_is_answered_as_the_api_answers_it(server: Server, visit: Visits) -> None:
    page = visit()
    example = choose_example(page, 2)
    expect(page.locator("#question")).to_have_value(example["question"])
    shown = ask(page)
    expected = api_answer(
        server, (EXAMPLES / example["file"]).read_bytes(), example["question"], 0.5
    )
    pruning = expected["pruning"]
    assert shown == expected["answer"]
    assert num_kept(page) == pruning["visual_tokens"]["kept"]
    assert num_veiled(page) == pruning["visual_tokens"]["total"] - num_kept(page)
    saved = pruning["flops"]["saved"] / pruning["flops"]["dense"]
    expect(page.locator("#saved")).to_contain_text(f"{saved:.0%}")
    expect(page.locator(".legend dt")).to_have_text(
        ["queue", "encode", "plan", "prefill", "decode"]
    )
    assert page.locator(".layer").count() == pruning["layers"]["total"]


def test_an_answer_is_written_as_it_streams(visit: Visits) -> None:
    page = visit()
    page.evaluate(
        """() => {
            window.seen = [];
            const note = () => seen.push(document.querySelector(".answer-text")?.textContent ?? "");
            new MutationObserver(note).observe(document.getElementById("outcome"),
                { childList: true, subtree: true, characterData: true });
        }"""
    )
    answer = ask(page)
    growing = list(dict.fromkeys(page.evaluate("seen")))
    assert len(growing) > 4
    assert growing[-1] == answer
    assert all(answer.startswith(text) for text in growing)


def test_the_slider_changes_cost_veil_and_layers_before_anything_is_asked(visit: Visits) -> None:
    page = visit()
    kept, spent = [], []
    for percent in (60, 20):
        set_budget(page, percent)
        expect(page.locator("#compute .note")).to_contain_text(f"{percent}% were allowed")
        kept.append(num_kept(page))
        spent.append(page.locator("#spent").inner_text())
    assert kept[0] > kept[1] > 0
    assert spent[0] != spent[1]
    expect(page.locator("#stage-of")).to_have_text("plan")
    page.locator("#budget").press("Home")
    expect(page.locator(".layer.skipped").first).to_be_visible()
    page.locator("#budget").press("End")
    expect(page.locator("#saved")).to_contain_text("0%")
    assert num_veiled(page) == 0


def test_a_later_change_marks_the_answer_as_older(visit: Visits) -> None:
    page = visit()
    ask(page)
    set_budget(page, 20)
    expect(page.locator("#answer")).to_have_class("answer-text stale")
    expect(page.locator(".facts")).to_contain_text("before the last change")


def test_an_own_picture_is_chosen_dropped_or_pasted(server: Server, visit: Visits) -> None:
    page = visit()
    question = "What color does the circle have?"
    page.locator("#question").fill(question)
    for way, number in (("choose", 41), ("drop", 24), ("paste", 10)):
        content = (EXAMPLES / f"scene-{number}.webp").read_bytes()
        with page.expect_response("**/v1/plan"):
            if way == "choose":
                page.locator("#file").set_input_files(
                    {"name": "mine, too.webp", "mimeType": "image/webp", "buffer": content}
                )
            else:
                hand_over(page, "mine, too.webp", content, way)
        name = "pasted picture" if way == "paste" else "mine, too.webp"
        expect(page.locator("#picture-name")).to_have_text(name)
        expect(page.locator("#thumb")).to_be_visible()
        assert ask(page) == api_answer(server, content, question, 0.5)["answer"]


def test_compare_says_whether_dense_and_pruned_agree(server: Server, visit: Visits) -> None:
    page = visit()
    example = choose_example(page, 11)
    content = (EXAMPLES / example["file"]).read_bytes()
    dense = api_answer(server, content, example["question"], 1)["answer"]
    for percent in (50, 13):
        set_budget(page, percent)
        pruned = api_answer(server, content, example["question"], percent / 100)["answer"]
        page.get_by_role("button", name="Compare").click()
        verdict = page.locator("#verdict")
        expect(verdict).to_be_visible()
        assert verdict.get_attribute("data-same") == json.dumps(dense == pruned)
        expect(page.locator(".side .answer-text")).to_have_text([dense, pruned])
        expect(page.locator("#said")).to_contain_text(verdict.inner_text().split("\n")[-1])


def test_a_sweep_draws_and_lists_every_budget(server: Server, visit: Visits) -> None:
    page = visit()
    example = choose_example(page, 11)
    content = (EXAMPLES / example["file"]).read_bytes()
    page.get_by_role("button", name="Sweep").click()
    expect(page.locator("#said")).to_have_text("The sweep is done: 8 budgets.")
    rows = page.locator("#sweep-table tbody tr")
    expect(rows).to_have_count(8)
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert [row[1] for row in (cells[0], cells[3])] == [
        api_answer(server, content, example["question"], budget)["answer"]
        for budget in (1, int(cells[3][0].rstrip("%")) / 100)
    ]
    dense = cells[0][1]
    assert [row[2] for row in cells[1:]] == [
        "same" if row[1] == dense else "other" for row in cells[1:]
    ]
    expect(page.locator(".point .same")).to_have_count(sum(row[1] == dense for row in cells))
    expect(page.locator(".point .other")).to_have_count(sum(row[1] != dense for row in cells))
    spent = [int(row[3].rstrip("%")) for row in cells]
    assert spent == sorted(spent, reverse=True)
    rows.nth(2).get_by_role("button").click()
    assert num_kept(page) == int(cells[2][4])
    expect(rows.nth(2).get_by_role("button")).to_be_focused()
    page.locator(".point").nth(4).click()
    assert num_kept(page) == int(cells[4][4])


def test_a_strategy_with_its_options_and_a_partner_reaches_the_server(visit: Visits) -> None:
    page = visit()
    page.locator("#advanced summary").click()
    names = page.locator("#strategy option").evaluate_all("(all) => all.map((one) => one.value)")
    assert {"par", "fastv", "none", "cdpruner"} <= set(names)
    page.get_by_label("Tokens and layers by").select_option("fastv")
    page.get_by_label("Skip layers by").select_option("shortgpt")
    page.get_by_label("layer", exact=True).fill("5")
    expect(page.locator("#curl")).to_contain_text(
        '{"flops":0.5,"strategy":"fastv+shortgpt","options":{"layer":5}}'
    )
    ask(page)
    expect(page.locator(".facts")).to_contain_text("fastv+shortgpt")
    lengths = page.locator(".layer:not(.skipped) i").evaluate_all(
        "(all) => all.map((one) => one.style.width)"
    )
    assert set(lengths[:5]) == {"100%"}
    assert "100%" not in lengths[5:]


def test_the_keyboard_alone_is_enough(visit: Visits) -> None:
    page = visit()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("Where is the white square?")
    page.keyboard.press("Enter")
    first = answer_of(page)
    assert first
    expect(page.locator("#said")).to_have_text(f"Answer: {first}")
    page.keyboard.press("Tab")
    expect(page.locator("#budget")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#budget-value")).to_have_text("49%")
    expect(page.locator("#budget")).to_have_attribute("aria-valuetext", "49%")
    for name in ("Strategy", "Ask", "Compare", "Sweep"):
        page.keyboard.press("Tab")
        assert name in page.evaluate("document.activeElement.textContent")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_be_visible()


def test_the_theme_follows_the_system_until_it_is_chosen(visit: Visits) -> None:
    page = visit(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    toggle = page.get_by_role("button", name="Dark theme")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    toggle.click()
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    assert page.evaluate(paper) == light
    expect(toggle).to_have_attribute("aria-pressed", "false")


def test_nothing_moves_where_motion_is_not_wanted(visit: Visits) -> None:
    page = visit(reduced_motion="reduce")
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((one) => {
            const style = getComputedStyle(one);
            return style.animationName !== "none" || style.transitionProperty !== "none"
                && style.transitionDuration !== "0s";
        }).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert moving == []


def test_every_example_has_a_picture_a_question_and_a_name(visit: Visits) -> None:
    page = visit()
    buttons = page.locator("#examples button")
    expect(buttons).to_have_count(12)
    names = [button.get_attribute("aria-label") for button in buttons.all()]
    assert names == [f"Example {n}: {each['question']}" for n, each in enumerate(INDEX, 1)]
    drawn = page.locator("#examples img").evaluate_all(
        "(all) => all.map((one) => one.naturalWidth)"
    )
    assert drawn == [224] * 12
    expect(page.locator("#picture img")).to_have_attribute("alt", INDEX[0]["alt"])


def test_screenshots_are_written_for_the_eye(
    visit: Visits, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("screenshots")
    for name, width, height, scheme in (
        ("light", 1440, 900, "light"),
        ("dark", 1440, 900, "dark"),
        ("phone", 390, 844, "light"),
    ):
        page = visit(viewport={"width": width, "height": height}, color_scheme=scheme)
        ask(page)
        page.screenshot(path=folder / f"{name}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert min(sizes.values()) > 10_000, sizes
    print(f"screenshots: {folder}")
