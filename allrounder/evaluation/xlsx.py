"""The first sheet of an .xlsx workbook as text: a zip of XML, read within limits.

Document type declarations are refused, so entities can neither expand nor reach out; formulas are
not evaluated, the values stored beside them are read.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

MAX_PART = 256 * 2**20
MAX_COLUMNS = 1024
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


class BrokenWorkbook(Exception):
    """Not a workbook, or one beyond the limits; the text is fit for users."""


def first_sheet(path: Path) -> list[list[str]]:
    """Rows of cells; gaps are ''. Raises BrokenWorkbook, or OSError where there is no file."""
    try:
        with zipfile.ZipFile(path) as archive:
            strings = _shared_strings(archive)
            sheet = _part(archive, _sheet_name(archive))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError):
        raise BrokenWorkbook("not a zip archive that can be read") from None
    return [_cells(row, strings) for row in sheet.iter(f"{_SHEET}row")]


def _sheet_name(archive: zipfile.ZipFile) -> str:
    sheets = [
        node.get(_RELATION) for node in _part(archive, "xl/workbook.xml").iter(f"{_SHEET}sheet")
    ]
    relations = {
        node.get("Id"): node.get("Target", "")
        for node in _part(archive, "xl/_rels/workbook.xml.rels")
    }
    if not sheets or sheets[0] not in relations:
        raise BrokenWorkbook("no sheet in it")
    target = relations[sheets[0]]
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _shared_strings(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    return [_text(node) for node in _part(archive, "xl/sharedStrings.xml").iter(f"{_SHEET}si")]


def _part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    try:
        with archive.open(name) as stream:
            data = stream.read(MAX_PART + 1)
    except KeyError:
        raise BrokenWorkbook(f"no {name} in it") from None
    if len(data) > MAX_PART:
        raise BrokenWorkbook(f"{name} is larger than {MAX_PART} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BrokenWorkbook(f"{name} is not UTF-8") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BrokenWorkbook(f"{name} declares a document type")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        raise BrokenWorkbook(f"{name} is not well-formed XML") from None


def _cells(row: ElementTree.Element, strings: list[str]) -> list[str]:
    cells: list[str] = []
    for cell in row.iter(f"{_SHEET}c"):
        column = _column(cell.get("r", ""), default=len(cells))
        if column >= MAX_COLUMNS:
            raise BrokenWorkbook(f"more than {MAX_COLUMNS} columns")
        cells += [""] * (column + 1 - len(cells))
        cells[column] = _value(cell, strings)
    return cells


def _column(reference: str, *, default: int) -> int:
    letters = re.match(r"[A-Z]{1,3}", reference)
    if letters is None:
        return default
    number = 0
    for letter in letters[0]:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, strings: list[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return _text(cell)
    stored = cell.findtext(f"{_SHEET}v", default="")
    if kind == "s":
        idx = int(stored) if stored.isascii() and stored.isdigit() else -1
        if not 0 <= idx < len(strings):
            raise BrokenWorkbook("a cell points at no string")
        return strings[idx]
    # Whole numbers may be stored as 241.0: an index must still read 241.
    return re.sub(r"^(-?\d+)\.0$", r"\1", stored) if kind == "n" else stored


def _text(node: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in node.iter(f"{_SHEET}t"))
