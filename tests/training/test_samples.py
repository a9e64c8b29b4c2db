"""Samples come without answers, grouped by image, and never from the demo model's own training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from allrounder.errors import InvalidField
from allrounder.training.samples import load_images, split_images


def write_data(folder: Path, lines: list[dict[str, str]]) -> str:
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    Image.new("RGB", (8, 6), "blue").save(folder / "blue.png")
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_questions_of_one_image_stay_together(tmp_path: Path) -> None:
    data = write_data(
        tmp_path,
        [
            {"image": "red.png", "question": "one?"},
            {"image": "blue.png", "question": "two?"},
            {"image": "red.png", "question": "three?", "answer": "ignored"},
        ],
    )
    images = load_images(data, num_samples=10, seed=0)
    assert sorted(image.questions for image in images) == [("one?", "three?"), ("two?",)]
    assert {image.load().height for image in images} == {6, 8}


def test_no_more_samples_than_wanted_and_no_image_on_both_sides() -> None:
    images = load_images("demo:30:7", num_samples=20, seed=0)
    assert sum(len(image.questions) for image in images) == 20
    first, others = split_images(images, num_first=6)
    assert sum(len(image.questions) for image in first) >= 6
    assert [*first, *others] == images


def test_demo_samples_repeat_and_differ_by_seed() -> None:
    digests = [
        load_images(data, num_samples=1, seed=0)[0].load().digest
        for data in ("demo", "demo:1:1", "demo:1:2")
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("demo:9:0", "trained on"),
        ("demo:many", "COUNT"),
        ("demo:1:2:3", "COUNT"),
        ("/nowhere.jsonl", "cannot be read"),
    ],
)
def test_bad_data_are_refused_by_name(data: str, says: str) -> None:
    with pytest.raises(InvalidField, match=says) as caught:
        load_images(data, num_samples=5, seed=0)
    assert caught.value.param == "data"


def test_a_bad_line_is_named_by_its_number(tmp_path: Path) -> None:
    data = write_data(tmp_path, [{"image": "red.png", "question": "one?"}, {"image": "red.png"}])
    with pytest.raises(InvalidField, match=r"data\.jsonl:2"):
        load_images(data, num_samples=5, seed=0)
