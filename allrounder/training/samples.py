"""Unlabelled samples: a JSONL file of images and questions, or procedural scenes of the demo.

Nothing here knows an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from random import Random

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from allrounder.core import ImageInput
from allrounder.demo.questions import ask_questions
from allrounder.demo.scene_pool import pool_scene
from allrounder.demo.scenes import SceneSplit, render
from allrounder.errors import InvalidField
from allrounder.images import decode_image

DEMO = "demo"
QUESTIONS_PER_SCENE = 4
# The demo model's own training scenes are those of seed 0, its held-out ones of another split.
DEMO_SEED = 1


@dataclass(frozen=True, kw_only=True)
class ImageQuestions:
    """One image, read when needed, and the questions asked about it."""

    load: Callable[[], ImageInput]
    questions: tuple[str, ...]


class Line(BaseModel):
    """One line of a data file; other fields, answers among them, are ignored."""

    model_config = ConfigDict(frozen=True)

    image: str = Field(min_length=1)
    question: str = Field(min_length=1)


def load_images(
    data: str, *, num_samples: int, seed: int, questions_per_image: int = QUESTIONS_PER_SCENE
) -> list[ImageQuestions]:
    """At most `num_samples` questions, grouped by image. Raises InvalidField naming `data`."""
    name, *rest = data.split(":")
    if name == DEMO:
        count, scene_seed = _demo_numbers(rest, num_samples)
        return limit_questions(_demo_images(count, scene_seed, questions_per_image), num_samples)
    images = _read_lines(Path(data))
    Random(seed).shuffle(images)
    return limit_questions(images, num_samples)


def split_images(
    images: list[ImageQuestions], *, num_first: int
) -> tuple[list[ImageQuestions], list[ImageQuestions]]:
    """The first images that hold `num_first` questions, and the others: no image in both."""
    taken, cut = 0, 0
    while cut < len(images) and taken < num_first:
        taken += len(images[cut].questions)
        cut += 1
    return images[:cut], images[cut:]


def _demo_numbers(rest: list[str], num_samples: int) -> tuple[int, int]:
    try:
        count, seed = [int(text) for text in rest] + [num_samples, DEMO_SEED][len(rest) :]
    except ValueError as err:
        raise InvalidField("expected demo[:COUNT[:SEED]]", param="data") from err
    if seed < DEMO_SEED:
        raise InvalidField(
            "seed 0 made the scenes that the demo model was trained on", param="data"
        )
    return min(count, num_samples), seed


def _demo_images(count: int, seed: int, per_scene: int) -> list[ImageQuestions]:
    images: list[ImageQuestions] = []
    found = 0
    while found < count:
        index = len(images)
        scene, _ = pool_scene(SceneSplit.TRAIN, seed, index)
        rng = Random(f"{seed}-{index}")
        texts = [question.text for question in ask_questions(scene, rng, per_type=1)]
        chosen = tuple(rng.sample(texts, min(per_scene, len(texts))))
        images.append(ImageQuestions(load=partial(_draw, seed, index), questions=chosen))
        found += len(chosen)
    return images


def _draw(seed: int, index: int) -> ImageInput:
    scene, rng = pool_scene(SceneSplit.TRAIN, seed, index)
    pixels = render(scene, rng)
    rgb = pixels.tobytes()
    height, width, _ = pixels.shape
    return ImageInput(width=width, height=height, rgb=rgb, digest=hashlib.sha256(rgb).hexdigest())


def _read_lines(path: Path) -> list[ImageQuestions]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidField(f"{path} cannot be read as text", param="data") from err
    lines = [_parse(path, number, text) for number, text in enumerate(texts, 1) if text.strip()]
    if not lines:
        raise InvalidField(f"{path} holds no samples", param="data")
    return [
        ImageQuestions(
            load=partial(_read_image, path.parent / image),
            questions=tuple(line.question for line in group),
        )
        for image, group in groupby(sorted(lines, key=_image), key=_image)
    ]


def _image(line: Line) -> str:
    return line.image


def _parse(path: Path, number: int, text: str) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as err:
        raise InvalidField(
            f'{path}:{number}: expected {{"image": PATH, "question": TEXT}}', param="data"
        ) from err


def _read_image(path: Path) -> ImageInput:
    try:
        return decode_image(path.read_bytes(), param=str(path))
    except OSError as err:
        raise InvalidField(f"image {path} cannot be read", param="data") from err


def limit_questions(images: list[ImageQuestions], num_samples: int) -> list[ImageQuestions]:
    chosen: list[ImageQuestions] = []
    left = num_samples
    for image in images:
        if left <= 0:
            break
        chosen.append(ImageQuestions(load=image.load, questions=image.questions[:left]))
        left -= len(chosen[-1].questions)
    return chosen
