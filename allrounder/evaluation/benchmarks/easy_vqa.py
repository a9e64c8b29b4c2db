"""easy-VQA: one coloured shape on a small image, thirteen possible answers."""

from __future__ import annotations

import zipfile
import zlib
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from allrounder.core import ImageInput
from allrounder.evaluation.grading import LabelledQuestion
from allrounder.evaluation.local import MAX_IMAGE_BYTES, LocalBenchmark, decoded, first_file
from allrounder.evaluation.official_files import read_json, unusable
from allrounder.evaluation.reading import ONE_WORD, exact_words

_BROKEN = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError)


class EasyVqa(LocalBenchmark):
    """Zhou, easy-VQA (github.com/vzhou842/easy-VQA).

    Metric: `accuracy`, exact agreement in lower case without a last full stop.

    Files: `test_questions.json` or `train_questions.json` (a list of [question, answer, image id]),
    images `<id>.png` in `<split>/images/`, `images/` or inside `<split>_images.zip`. Answers:
    lines with text and question_id, the place of the question in its file from 0.
    """

    name = "easy-vqa"
    files = "test_questions.json or train_questions.json, and <split>_images.zip or images/"
    label_files: ClassVar[tuple[str, ...]] = ("test_questions.json", "*questions*.json")

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        found = read_json(path, param=param)
        rows = []
        for place, value in enumerate(found if isinstance(found, list) else []):
            if not isinstance(value, list) or len(value) != 3:
                raise unusable(path, f"{place} is no [question, answer, image id]", param=param)
            question, answer, image = map(str, value)
            rows.append(
                LabelledQuestion(
                    id=str(place),
                    text=question,
                    prompt=f"{question}\n{ONE_WORD}",
                    type="yes or no" if answer in ("yes", "no") else "word",
                    label=answer,
                    image=f"{image}.png",
                )
            )
        if not rows:
            raise unusable(path, "holds no list of questions", param=param)
        return rows

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return float(exact_words(answer) == exact_words(row.label))

    def image(self, name: str) -> ImageInput:
        if self._archive is not None:
            return decoded(self._unpacked(self._archive, f"{self._split}/images/{name}"), name)
        inner = f"{self._split}/images/{name}"
        return super().image(inner if (self.data / inner).is_file() else name)

    @cached_property
    def _split(self) -> str:
        return self.label_file().name.partition("_")[0]

    @cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        """Held in memory: a few megabytes, whose table of contents is slow to read."""
        path = first_file(self.data, (f"{self._split}_images.zip",))
        try:
            return None if path is None else zipfile.ZipFile(BytesIO(path.read_bytes()))
        except (*_BROKEN, OSError):
            raise self.missing_data(f"{path} cannot be unpacked") from None

    def _unpacked(self, archive: zipfile.ZipFile, member: str) -> bytes:
        try:
            with archive.open(member) as stream:
                return stream.read(MAX_IMAGE_BYTES + 1)
        except KeyError:
            raise self.missing_data(f"{self._split}_images.zip has no {member}") from None
        except _BROKEN:
            raise self.missing_data(f"{self._split}_images.zip cannot be unpacked") from None
