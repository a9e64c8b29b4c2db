"""The shipped weights load with plain transformers and name a big single shape rightly."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from research.demo_model.evaluate import WEIGHTS, Answerer

CASES = [
    ("What shape is this?", {"circle", "a circle"}),
    ("What colour is the circle?", {"red"}),
    ("what color is it", {"red"}),
    ("Is there a red circle?", {"yes"}),
    ("Is there a blue square?", {"no"}),
]


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer()


def draw_red_circle(background: str) -> Image.Image:
    image = Image.new("RGB", (320, 320), background)
    ImageDraw.Draw(image).ellipse((100, 95, 230, 225), fill="red")
    return image


@pytest.mark.parametrize("background", ["white", "black", "lightblue"])
def test_a_big_red_circle_on_a_plain_background_is_named_right(
    answerer: Answerer, background: str
) -> None:
    image = draw_red_circle(background)
    answers = answerer.answer([image] * len(CASES), [question for question, _ in CASES])
    for (question, accepted), answer in zip(CASES, answers, strict=True):
        assert answer in accepted, (question, answer)


def test_all_weights_together_stay_under_forty_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 40_000_000
