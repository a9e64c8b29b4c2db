"""The playground's example images and questions: `python -m research.demo_model.showcase FOLDER`.

Scenes of the held-out split, under a seed that no figure was measured with.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from allrounder.demo.held_out import Exam, draw_exams
from allrounder.demo.scenes import Scene

SEED = 2
# Scene and type of question.
CHOSEN = (
    (16, "describe"),
    (10, "describe"),
    (24, "describe"),
    (20, "where"),
    (15, "corner"),
    (3, "compare"),
    (22, "count"),
    (0, "describe"),
    (17, "corner"),
    (41, "position"),
    (29, "shape"),
    (31, "count"),
)
INDEX = "examples.json"


def draw_showcase() -> list[Exam]:
    """One exam per choice, each with the one question that was chosen."""
    exams = draw_exams(max(scene for scene, _ in CHOSEN) + 1, seed=SEED)
    return [
        Exam(
            scene=exams[scene].scene,
            image=exams[scene].image,
            questions=tuple(q for q in exams[scene].questions if q.type == kind),
        )
        for scene, kind in CHOSEN
    ]


def file_name(scene: int) -> str:
    return f"scene-{scene}.webp"


def index_of(exams: Sequence[Exam]) -> list[dict[str, Any]]:
    """What the page knows of each example: its file, its question, a text instead of a look."""
    return [
        {
            "file": file_name(number),
            "question": _written(exam.questions[0].text),
            "alt": _described(exam.scene),
        }
        for (number, _), exam in zip(CHOSEN, exams, strict=True)
    ]


def write_showcase(folder: Path) -> None:
    """Lossless WebP files and their index; pixels and index are the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    exams = draw_showcase()
    for (number, _), exam in zip(CHOSEN, exams, strict=True):
        encoded = io.BytesIO()
        Image.fromarray(exam.image).save(encoded, "WEBP", lossless=True, quality=100, method=6)
        (folder / file_name(number)).write_bytes(encoded.getvalue())
    (folder / INDEX).write_text(json.dumps(index_of(exams), indent=1) + "\n", encoding="utf-8")


def _written(text: str) -> str:
    """As a person writes it: a capital first, a mark last."""
    mark = "" if text.endswith(("?", ".")) else "." if text.lower().startswith("desc") else "?"
    return text[0].upper() + text[1:] + mark


def _described(scene: Scene) -> str:
    names = [f"{item.size} {item.colour} {item.shape}" for item in scene.objects]
    ground = "plain" if scene.background.plain else "cluttered"
    return f"{', '.join(names)} on a {ground} background"


if __name__ == "__main__":
    write_showcase(Path(sys.argv[1]))
