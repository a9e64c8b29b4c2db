"""Answers from a file, joined to the questions they belong to; what does not fit is counted."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from allrounder.evaluation.official_files import is_table, read_records, read_table, unusable
from allrounder.evaluation.reading import bare_question

FIRSTID_KEYS = 10
KINDS = ("missing", "extra", "duplicated", "malformed", "empty", "unreadable")
ID_KEYS = ("question_id", "questionId", "index", "id", "pid")
_TEXTS = ("prediction", "text", "answer", "response", "output")
_PROMPTS = ("prompt", "question")


@dataclass(frozen=True, kw_only=True)
class LabelledQuestion:
    """One question with its label: the one form that every benchmark's files are brought to.

    Attributes:
        id: as answer files name it; need not be unique.
        alias: a second name that answer files may use, '' where there is none.
        text: the bare question, '' where answers are not joined by it.
        prompt: what a model is asked, instructions included.
        type: split, task, category or capability.
        label: the right answer: a word, a letter.
        labels: all right answers, where people gave several.
        group: rows of one group count together (pairs, rotations); '' for none.
        image: file name of the image, or the image in base64; '' where there is none.
    """

    id: str
    alias: str = ""
    text: str = ""
    prompt: str = ""
    type: str = ""
    label: str = ""
    labels: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    group: str = ""
    image: str = ""


@dataclass(frozen=True, kw_only=True)
class GivenAnswer:
    """One answer of a file. `text` is None where the entry holds no text: malformed."""

    place: str
    id: str = ""
    text: str | None = None
    prompt: str = ""
    type: str = ""

    @property
    def name(self) -> str:
        return self.id or self.place


@dataclass
class Problems:
    """Ids by kind, in the order they were met."""

    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def add(self, kind: str, name: str) -> None:
        self.found.setdefault(kind, []).append(name)

    def report(self) -> dict[str, dict[str, Any]]:
        return {
            kind: {"count": len(ids), "first": ids[:FIRSTID_KEYS]}
            for kind, ids in self.found.items()
        }


def read_answers(path: Path) -> list[GivenAnswer]:
    """A table with `index` and `prediction`, an object {id: text}, or one object an answer."""
    if is_table(path):
        return _from_table(path)
    records = read_records(path, param="answers")
    if not records:
        raise unusable(path, "holds no answers", param="answers")
    only = records[0].value if len(records) == 1 else None
    if isinstance(only, dict) and not set(ID_KEYS) & set(only):
        return [
            _given(f"entry {key!r}", value if isinstance(value, dict) else {"text": value}, key)
            for key, value in only.items()
        ]
    return [_given(record.place, record.value, None) for record in records]


def _from_table(path: Path) -> list[GivenAnswer]:
    rows = read_table(path, ("prediction",), param="answers")
    id_column = next((name for name in ID_KEYS if name in rows[0]), None)
    if id_column is None:
        raise unusable(path, "has no column 'index'", param="answers")
    return [
        GivenAnswer(place=f"row {n}", id=row[id_column].strip(), text=row["prediction"])
        for n, row in enumerate(rows, 2)
    ]


def _given(place: str, value: Any, key: str | None) -> GivenAnswer:
    if not isinstance(value, dict):
        return GivenAnswer(place=place)
    name = key if key is not None else next((value[k] for k in ID_KEYS if k in value), "")
    text = next((value[k] for k in _TEXTS if k in value), None)
    prompt = next((value[k] for k in _PROMPTS if k in value), "")
    kind = value.get("category", "")
    return GivenAnswer(
        place=place,
        id=str(name) if isinstance(name, str | int) else "",
        text=text if isinstance(text, str) else None,
        prompt=prompt if isinstance(prompt, str) else "",
        type=kind if isinstance(kind, str) else "",
    )


def join(
    rows: Sequence[LabelledQuestion], given: Iterable[GivenAnswer], problems: Problems
) -> list[str | None]:
    """The text of each row's answer, None where there is none.

    An answer fits the rows of its id, and of its question where both sides state one. Where it fits
    several (ids that restart in every category), order decides: the longest common order of both
    files, then the first row left. A row's first answer counts, later ones are `duplicated`.
    """
    fits = _fitting(rows)
    usable: list[tuple[GivenAnswer, tuple[int, ...]]] = []
    spoilt: set[str] = set()
    for answer in given:
        if answer.text is None:
            problems.add("malformed", answer.name)
            spoilt.add(answer.id)
        elif candidates := fits(answer):
            usable.append((answer, candidates))
        else:
            problems.add("extra", answer.name)
    chosen = _assigned(usable)
    texts: list[str | None] = [None] * len(rows)
    for n, (answer, _) in enumerate(usable):
        if n not in chosen:
            problems.add("duplicated", answer.name)
            continue
        texts[chosen[n]] = answer.text
        if not (answer.text or "").strip():
            problems.add("empty", answer.name)
    for row, text in zip(rows, texts, strict=True):
        if text is None and row.id not in spoilt:
            problems.add("missing", row.id)
    return texts


def _fitting(rows: Sequence[LabelledQuestion]) -> Callable[[GivenAnswer], tuple[int, ...]]:
    by_id: dict[str, list[int]] = defaultdict(list)
    by_text: dict[str, list[int]] = defaultdict(list)
    texts = [bare_question(row.text) for row in rows]
    types = {row.type for row in rows}
    for idx, row in enumerate(rows):
        by_text[texts[idx]].append(idx)
        for name in {row.id, row.alias} - {""}:
            by_id[name].append(idx)

    def fits(answer: GivenAnswer) -> tuple[int, ...]:
        asked = _asked(answer.prompt)
        found = by_id.get(answer.id, []) if answer.id else []
        if not answer.id and asked:
            found = [idx for text in asked for idx in by_text.get(text, [])]
        if asked:
            found = [idx for idx in found if not texts[idx] or texts[idx] in asked]
        if answer.type in types:
            found = [idx for idx in found if rows[idx].type == answer.type]
        return tuple(found)

    return fits


def _asked(prompt: str) -> set[str]:
    """The question a prompt may hold: all of it, or one of its lines (LLaVA adds OCR tokens)."""
    lines = [prompt, *prompt.split("\n")]
    return {bare for bare in map(bare_question, lines) if bare}


def _assigned(usable: Sequence[tuple[GivenAnswer, tuple[int, ...]]]) -> dict[int, int]:
    """Place in `usable` -> row."""
    fitting = [candidates for _, candidates in usable]
    chosen = _in_common_order(fitting) if any(len(rows) > 1 for rows in fitting) else {}
    taken = set(chosen.values())
    for place, candidates in enumerate(fitting):
        free = next((idx for idx in candidates if idx not in taken), None)
        if place not in chosen and free is not None:
            chosen[place] = free
            taken.add(free)
    return chosen


def _in_common_order(fitting: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """The longest common subsequence of answers and rows (Hunt and Szymanski, 1977).

    It is the longest run of rising rows: `ends[n]` is the smallest row that ends one of n + 1.
    """
    ends: list[int] = []
    last: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    for place, candidates in enumerate(fitting):
        for row in sorted(candidates, reverse=True):
            length = bisect_left(ends, row)
            pairs.append((place, row, last[length - 1] if length else -1))
            ends[length : length + 1] = [row]
            last[length : length + 1] = [len(pairs) - 1]
    chosen: dict[int, int] = {}
    current = last[-1] if last else -1
    while current >= 0:
        place, row, current = pairs[current]
        chosen[place] = row
    return chosen


def renamed(given: Iterable[GivenAnswer], rename: Callable[[str], str]) -> list[GivenAnswer]:
    return [replace(answer, id=rename(answer.id)) for answer in given]
