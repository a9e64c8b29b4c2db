"""Streamed text: never part of a stop string, never half a character, and all of it in the end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allrounder.core import SamplingParams
from allrounder.engine.execution.sampling import AnswerText, Sampler


class Letters:
    """Each id is one character."""

    def push(self, token_id: int) -> str:
        return chr(token_id)


def _stream(text: str, stop: tuple[str, ...]) -> tuple[str, AnswerText]:
    answer = AnswerText(Letters(), stop)
    sent = ""
    for letter in text:
        sent += answer.push(ord(letter))
        if answer.stopped:
            break
    return sent + answer.flush(), answer


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("red circle", (), "red circle"),
        ("  red circle", (), "red circle"),
        ("red circle. And", (".",), "red circle"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one\ntwo", ("\n\n",), "one\ntwo"),
        ("aab", ("ab", "b"), "a"),
        ("end in half <st", ("<stop>",), "end in half <st"),
    ],
)
def test_an_answer_ends_before_its_stop_string(
    text: str, stop: tuple[str, ...], expected: str
) -> None:
    sent, answer = _stream(text, stop)
    assert sent == answer.text == expected


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_was_sent_is_the_answer_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    sent, answer = _stream(text, tuple(stops))
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    if ends:
        cut = min(text[: ends[0]].find(s) for s in stops if s in text[: ends[0]])
        assert sent == answer.text == text[:cut]
    else:
        assert sent == answer.text == text


def test_greedy_takes_the_best_id() -> None:
    assert Sampler(SamplingParams()).next_id(torch.tensor([0.1, 3.0, 2.0])) == 1


def test_a_seed_repeats_its_draws_and_no_seed_does_not() -> None:
    logits = torch.zeros(1000)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.next_id(logits) for _ in range(5)]

    assert draws(3) == draws(3) != draws(4)
    assert draws(None) != draws(None)


def test_top_p_draws_only_from_the_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.7, seed=0))
    seen = {sampler.next_id(logits) for _ in range(200)}
    assert seen == {0, 1}


def test_temperature_follows_the_distribution() -> None:
    logits = torch.tensor([0.7, 0.3]).log()
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1))
    share = sum(sampler.next_id(logits) == 0 for _ in range(2000)) / 2000
    assert share == pytest.approx(0.7, abs=0.04)
