"""What a command line may spell, and what it becomes."""

from __future__ import annotations

import pytest

from allrounder.core.budget import Counts, FlopsShare
from allrounder.errors import InvalidField
from allrounder.evaluation.defaults import FULL, SEARCHES, SHORT
from allrounder.evaluation.grid import (
    Contender,
    parse_contender,
    parse_grid_budget,
    parse_limits,
    settings_of,
    with_routers,
)


def _asked(*texts: str, num_visual: int | None = 196):
    return [parse_grid_budget(text, num_visual=num_visual) for text in texts]


def test_a_strategy_carries_its_knobs() -> None:
    assert parse_contender("fastv:layer=3") == Contender(
        label="fastv:layer=3", strategy="fastv", options=(("layer", 3),)
    )


def test_a_composed_strategy_may_search_one_of_its_knobs() -> None:
    contender = parse_contender("fastv:best+shortgpt")
    assert contender.strategy == "fastv+shortgpt"
    assert contender.search == SEARCHES["fastv"]


@pytest.mark.parametrize("text", ["fastv:", "par:best", "fastv:layer", "fastv:=3"])
def test_a_strategy_that_cannot_be_read_is_refused(text: str) -> None:
    if text == "fastv:":
        assert parse_contender(text).options == ()
        return
    with pytest.raises(InvalidField):
        parse_contender(text)


def test_budgets_are_what_a_request_would_hold() -> None:
    number, counts, share = _asked("0.5", "tokens=24/layers=12", "tokens=12%")
    assert (number.label, number.wire) == ("0.5", 0.5)
    assert counts.wire == {"tokens": 24, "layers": 12}
    assert share.wire == {"tokens": 24}
    settings = settings_of([parse_contender("par")], [number, counts])
    assert [setting.request().form for setting in settings] == [
        FlopsShare(share=0.5),
        Counts(tokens=24, layers=12),
    ]


@pytest.mark.parametrize("text", ["2", "nonsense", "tokens=x%", "tokens=0", "colour=3", "tokens"])
def test_a_budget_that_a_request_could_not_hold_is_refused(text: str) -> None:
    with pytest.raises(InvalidField):
        _asked(text)


def test_a_share_of_tokens_needs_a_fixed_number_of_them() -> None:
    with pytest.raises(InvalidField, match="no fixed number"):
        _asked("tokens=12%", num_visual=None)


def test_dense_is_run_once_at_budget_1() -> None:
    rows = [parse_contender("none"), parse_contender("par")]
    grid = settings_of(rows, _asked("0.5", "0.25"), limits={"par": 7, "*": 3})
    assert [(str(setting), setting.num_items) for setting in grid] == [
        ("none at 1", 3),
        ("par at 0.5", 7),
        ("par at 0.25", 7),
    ]


def test_limits_name_strategies_and_all_others() -> None:
    assert parse_limits("par=4000,*=1000") == {"par": 4000, "*": 1000}
    with pytest.raises(InvalidField):
        parse_limits("par")


def test_named_routers_make_a_row_each_of_what_reads_them() -> None:
    rows = [parse_contender("par"), parse_contender("random")]
    found = with_routers(rows, ["a", "b"], {"par": True, "random": False})
    assert [(row.label, row.router) for row in found] == [
        ("par@a", "a"),
        ("par@b", "b"),
        ("random", None),
    ]


@pytest.mark.parametrize("preset", [FULL, SHORT], ids=["full", "short"])
def test_every_preset_can_be_read(preset) -> None:
    assert settings_of(
        [parse_contender(text) for text in preset.strategies], _asked(*preset.budgets)
    )
