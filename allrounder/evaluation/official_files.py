"""Untrusted local files to records; every failure is an InvalidField that names the file.

Knows nothing of benchmarks. `param` is the option by which a file came: data, labels, questions
or answers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allrounder.errors import InvalidField
from allrounder.evaluation.xlsx import BrokenWorkbook, first_sheet

MAX_CELL = 64 * 2**20
Table = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One value of a file; `place` says where ("line 7"), `value` is None where it is no JSON."""

    place: str
    value: Any


def unusable(path: Path, reason: str, *, param: str) -> InvalidField:
    return InvalidField(f"{path}: {reason}", param=param)


def read_text(path: Path, *, param: str) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise unusable(path, "there is no such file", param=param) from None
    except IsADirectoryError:
        raise unusable(path, "is a folder, expected a file", param=param) from None
    except UnicodeDecodeError:
        raise unusable(path, "is not UTF-8 text", param=param) from None
    except (OSError, ValueError):
        raise unusable(path, "cannot be read", param=param) from None


def read_json(path: Path, *, param: str) -> Any:
    found = _parsed(read_text(path, param=param))
    if found is None:
        raise unusable(path, "is not JSON", param=param)
    return found


def read_object(path: Path, *, param: str) -> dict[str, Any]:
    found = read_json(path, param=param)
    if not isinstance(found, dict):
        raise unusable(path, "expected one JSON object", param=param)
    return found


def read_records(path: Path, *, param: str) -> list[FileEntry]:
    """A JSON array, an object (one record: itself), or JSON lines, with trailing commas or without.

    Lines that are no JSON come back with the value None, in their place.
    """
    text = read_text(path, param=param)
    whole = _parsed(text)
    if isinstance(whole, list):
        return [FileEntry(place=f"entry {n}", value=value) for n, value in enumerate(whole, 1)]
    if whole is not None:
        return [FileEntry(place="line 1", value=whole)]
    return [
        FileEntry(place=f"line {n}", value=_parsed(line.strip().rstrip(",")))
        for n, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def read_rows(path: Path, keys: Sequence[str], *, param: str) -> list[dict[str, Any]]:
    """Records that must all be objects with these keys: what labels and questions are read with."""
    rows = []
    for record in read_records(path, param=param):
        if not isinstance(record.value, dict):
            raise unusable(path, f"{record.place} is not a JSON object", param=param)
        lacking = [key for key in keys if key not in record.value]
        if lacking:
            raise unusable(path, f"{record.place} has no {lacking[0]!r}", param=param)
        rows.append(record.value)
    if not rows:
        raise unusable(path, "holds no rows", param=param)
    return rows


def read_table(path: Path, columns: Sequence[str], *, param: str) -> Table:
    """TSV, CSV or XLSX with a header; cells as text, absent ones as ''."""
    if path.suffix.lower() == ".xlsx":
        lines = _workbook(path, param=param)
    else:
        delimiter = "," if path.suffix.lower() == ".csv" else "\t"
        lines = _separated(path, delimiter, param=param)
    if len(lines) < 2:
        raise unusable(path, "holds no rows under its header", param=param)
    header = [name.strip() for name in lines[0]]
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise unusable(path, f"has no column {lacking[0]!r}", param=param)
    return [
        dict(zip(header, line + [""] * (len(header) - len(line)), strict=False))
        for line in lines[1:]
        if any(cell.strip() for cell in line)
    ]


def is_table(path: Path) -> bool:
    return path.suffix.lower() in {".tsv", ".csv", ".xlsx"}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _separated(path: Path, delimiter: str, *, param: str) -> list[list[str]]:
    text = read_text(path, param=param)
    before = csv.field_size_limit(MAX_CELL)
    try:
        return list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter))
    except csv.Error:
        raise unusable(path, "is not a table", param=param) from None
    finally:
        csv.field_size_limit(before)


def _workbook(path: Path, *, param: str) -> list[list[str]]:
    try:
        return first_sheet(path)
    except FileNotFoundError:
        raise unusable(path, "there is no such file", param=param) from None
    except (BrokenWorkbook, OSError) as err:
        raise unusable(path, f"is no readable workbook ({err})", param=param) from None
