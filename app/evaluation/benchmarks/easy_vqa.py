"""easy-VQA: one coloured shape on a small picture, thirteen possible answers."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import ClassVar

from app.core import ImageInput
from app.evaluation.answers import Row
from app.evaluation.files import read_json, unusable
from app.evaluation.local import MAX_PICTURE_BYTES, LocalBenchmark, decoded, first_file
from app.evaluation.reading import ONE_WORD, exact_words


class EasyVqa(LocalBenchmark):
    """Zhou, easy-VQA (github.com/vzhou842/easy-VQA).

    Metric: `accuracy`, exact agreement in lower case without a last full stop.

    Files: `test_questions.json` or `train_questions.json` (a list of [question, answer, image id]),
    pictures `<id>.png` in `<split>/images/`, `images/` or inside `<split>_images.zip`. Answers:
    lines with text and question_id, the place of the question in its file from 0.
    """

    name = "easy-vqa"
    files = "test_questions.json or train_questions.json, and <split>_images.zip or images/"
    label_files: ClassVar[tuple[str, ...]] = ("test_questions.json", "*questions*.json")

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[Row]:
        found = read_json(path, param=param)
        rows = []
        for place, value in enumerate(found if isinstance(found, list) else []):
            if not isinstance(value, list) or len(value) != 3:
                raise unusable(path, f"{place} is no [question, answer, image id]", param=param)
            question, answer, image = map(str, value)
            rows.append(
                Row(
                    id=str(place),
                    text=question,
                    prompt=f"{question}\n{ONE_WORD}",
                    type="yes or no" if answer in ("yes", "no") else "word",
                    label=answer,
                    picture=f"{image}.png",
                )
            )
        if not rows:
            raise unusable(path, "holds no list of questions", param=param)
        return rows

    @staticmethod
    def grade(row: Row, answer: str) -> float:
        return float(exact_words(answer) == exact_words(row.label))

    def picture(self, name: str) -> ImageInput:
        split = self.label_file().name.partition("_")[0]
        archive = first_file(self.data, (f"{split}_images.zip",))
        if archive is not None:
            return decoded(self._unpacked(archive, f"{split}/images/{name}"), name)
        if (self.data / split / "images" / name).is_file():
            return super().picture(f"{split}/images/{name}")
        return super().picture(name)

    def _unpacked(self, archive: Path, member: str) -> bytes:
        try:
            with zipfile.ZipFile(archive) as opened, opened.open(member) as stream:
                return stream.read(MAX_PICTURE_BYTES + 1)
        except KeyError:
            raise self.lacking(f"{archive} has no {member}") from None
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError):
            raise unusable(archive, "cannot be unpacked", param="data") from None
