"""What all benchmarks read from local files have in common: images, sampling, joining, mean."""

from __future__ import annotations

import base64
import binascii
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

from allrounder.core import ImageInput
from allrounder.errors import InvalidField
from allrounder.evaluation.benchmark import Item
from allrounder.evaluation.grading import (
    ID_KEYS,
    GivenAnswer,
    LabelledQuestion,
    Problems,
    join,
    read_answers,
)
from allrounder.evaluation.official_files import read_rows, unusable
from allrounder.images import decode_image

_KEPT_IMAGES = 16
MAX_IMAGE_BYTES = 64 * 2**20


class LocalItem(Item):
    """An item that knows its row and decodes its image when it is needed, not before.

    A thousand decoded photographs would take gigabytes; some are kept, most are decoded again.
    """

    row: LabelledQuestion

    def __init__(
        self,
        row: LabelledQuestion,
        *,
        cluster: int,
        load: Callable[[str], ImageInput],
        grade: Grade,
    ) -> None:
        own = {"question": row.prompt, "type": row.type, "cluster": cluster}
        own |= {"grade": partial(grade, row), "row": row, "_load": load}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def image(self) -> ImageInput:
        load: Callable[[str], ImageInput] = self.__dict__["_load"]
        return load(self.row.image)


Grade = Callable[[LabelledQuestion, str], float]


@dataclass(frozen=True, kw_only=True)
class ScoreFiles:
    """Files to grade; labels and questions where the benchmark needs them."""

    answers: Path
    labels: Path | None = None
    questions: Path | None = None


class LocalBenchmark(ABC):
    """A benchmark from the folder of its official files.

    A subclass says which files those are (`files`), reads them (`labelled`), grades one answer and
    makes the official figures. Questions without an image are graded but never asked.

    Attributes:
        label_files: patterns of the file of labels inside the folder, the preferred one first.
    """

    name: str
    files: str
    label_files: ClassVar[tuple[str, ...]]
    image_folders: ClassVar[tuple[str, ...]] = ("images", ".")

    def __init__(self, data: Path | None = None) -> None:
        if data is None or not data.is_dir():
            raise self.missing_data(
                "no folder was given" if data is None else f"{data} is no folder"
            )
        self.data = data

    @classmethod
    @abstractmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        """All questions of a file (or folder) of labels, in its order. Raises InvalidField."""

    @staticmethod
    @abstractmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        """0 to 1 for any text."""

    @staticmethod
    def is_readable(_row: LabelledQuestion, _answer: str, /) -> bool:
        """Whether the answer holds what is graded (a letter, a yes or no), right or wrong."""
        return True

    def rows(self) -> list[LabelledQuestion]:
        return self.labelled(self.label_file(), param="data")

    @classmethod
    def score(cls, files: ScoreFiles) -> dict[str, Any]:
        """Grade a file of answers. Raises InvalidField whose `param` names one of the files."""
        problems = Problems()
        rows = cls.labelled(resolve_label_file(files.labels, cls.label_files), param="labels")
        if files.questions is not None:
            rows = cls.in_order_of(files.questions, rows)
        return cls.report(rows, join(rows, cls.given(files.answers), problems), problems)

    @classmethod
    def in_order_of(
        cls, questions: Path, rows: Sequence[LabelledQuestion]
    ) -> list[LabelledQuestion]:
        """Rows as a question file has them, those it does not ask last."""
        lines = read_rows(questions, (), param="questions")
        names = [str(line[key]) for line in lines for key in ID_KEYS if key in line]
        places = {name: place for place, name in reversed(list(enumerate(names)))}
        return sorted(rows, key=lambda row: places.get(row.id, len(names)))

    @classmethod
    def given(cls, answers: Path) -> list[GivenAnswer]:
        return read_answers(answers)

    @classmethod
    def report(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None], problems: Problems
    ) -> dict[str, Any]:
        for row, text in zip(rows, texts, strict=True):
            if text is not None and text.strip() and not cls.is_readable(row, text):
                problems.add("unreadable", row.id)
        return {**cls.figures(rows, texts), "n": len(rows), "problems": problems.report()}

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        """The official figures; a text of None is a missing answer, and wrong."""
        return {"accuracy": mean(cls.grades(rows, texts))}

    @classmethod
    def grades(cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]) -> list[float]:
        return [
            0.0 if text is None or not text.strip() else cls.grade(row, text)
            for row, text in zip(rows, texts, strict=True)
        ]

    def items(self, *, limit: int, seed: int) -> Sequence[Item]:
        """At most `limit` questions, whole groups, drawn by `seed`, in the order of the files.

        Every image is decoded once, so that a damaged one fails here and not hours later.
        """
        load = lru_cache(maxsize=_KEPT_IMAGES)(self.image)
        rows = sample_groups([row for row in self.rows() if row.image], limit=limit, seed=seed)
        if not rows:
            raise self.missing_data(f"{self.data} holds no question with an image")
        clusters: dict[str, int] = {}
        for row in rows:
            if row.image not in clusters:
                clusters[row.image] = len(clusters)
                load(row.image)
        return [
            LocalItem(row, cluster=clusters[row.image], load=load, grade=type(self).grade)
            for row in rows
        ]

    def summary(self, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
        return self.figures(self.rows_of(items), list(answers))

    @staticmethod
    def rows_of(items: Sequence[Item]) -> list[LabelledQuestion]:
        rows = [item.row for item in items if isinstance(item, LocalItem)]
        assert len(rows) == len(items), "a summary is asked for with the benchmark's own items"
        return rows

    def image(self, name: str) -> ImageInput:
        """Decoded within the limits of the intake. Raises InvalidField where there is no file."""
        for folder in self.image_folders:
            path = self.data / folder / name
            if ".." not in Path(name).parts and not Path(name).is_absolute() and path.is_file():
                return decoded(path.read_bytes(), name)
        raise self.missing_data(f"{self.data} has no image {name}")

    def label_file(self) -> Path:
        found = first_file(self.data, self.label_files)
        if found is None:
            raise self.missing_data(f"{self.data} has no {self.label_files[0]}")
        return found

    def missing_data(self, what: str) -> InvalidField:
        return InvalidField(f"{what}; {self.name} is read from {self.files}", param="data")


def decoded(data: bytes, name: str) -> ImageInput:
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidField(f"{name} is larger than {MAX_IMAGE_BYTES} bytes", param="data")
    return decode_image(data, param="data")


def from_base64(text: str, name: str) -> ImageInput:
    try:
        data = base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError):
        raise InvalidField(f"the image of {name} is no base64", param="data") from None
    return decoded(data, name)


def sample_groups(
    rows: Sequence[LabelledQuestion], *, limit: int, seed: int
) -> list[LabelledQuestion]:
    """Whole groups while they fit; the first one is cut where even it does not."""
    groups: dict[str, list[int]] = {}
    for idx, row in enumerate(rows):
        groups.setdefault(row.group or f"row {idx}", []).append(idx)
    order = list(groups.values())
    if len(rows) > limit:
        random.Random(seed).shuffle(order)
    chosen: list[int] = []
    for group in order:
        if len(chosen) + len(group) <= limit:
            chosen += group
    return [rows[idx] for idx in sorted(chosen or order[0][:limit] if order else [])]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def by_type(rows: Sequence[LabelledQuestion], values: Sequence[float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        found.setdefault(row.type, []).append(value)
    return {name: mean(of_type) for name, of_type in found.items()}


def first_file(folder: Path, patterns: Sequence[str]) -> Path | None:
    """The first by name that fits the first pattern that any fits."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found[0]
    return None


def resolve_label_file(labels: Path | None, patterns: Sequence[str]) -> Path:
    """The file of labels: itself, or found in the folder that was named."""
    if labels is None:
        raise InvalidField("is needed: these answers do not carry their labels", param="labels")
    if not labels.is_dir():
        return labels
    found = first_file(labels, patterns)
    if found is None:
        raise unusable(labels, f"has no {' or '.join(patterns)}", param="labels")
    return found
