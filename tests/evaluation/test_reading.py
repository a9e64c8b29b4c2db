"""What answers say: letters, yes or no, words; and the tables they come in."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.errors import InvalidField
from allrounder.evaluation.official_files import read_records, read_table
from allrounder.evaluation.reading import (
    bare_question,
    mme_says,
    option_letter,
    pope_says,
    vqa_accuracy,
    vqa_words,
)

CHOICES = ("a cat", "a dog", "both", "Neither.")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("b", "B"),
        (" C \n", "C"),
        ("A.", "A"),
        ("(A)", "A"),
        ("(b)", "B"),
        ("[C]", "C"),
        ("A)", "A"),
        ("A:", "A"),
        ("B. a dog", "B"),
        ("(B) a dog", "B"),
        ("B) a dog", "B"),
        ("B: a dog", "B"),
        ("B\nbecause it barks", "B"),
        ("The answer is D.", "D"),
        ("I see a dog. The answer is (B)", "B"),
        ("Answer: C", "C"),
        ("The answer is B. Yes, the answer is B.", "B"),
        ("a dog", "B"),
        ("neither", "D"),
        ("The answer is A. No, the answer is B.", None),
        ("A or B", None),
        ("A man", None),
        ("A, B", None),
        ("AB", None),
        ("E", None),
        ("J. text", None),
        ("The answer is Apple", None),
        ("I don't know", None),
        ("", None),
        ("\uff21", None),
    ],
)
def test_an_options_letter_is_read_by_llavas_conventions(text: str, letter: str | None) -> None:
    assert option_letter(text, CHOICES) == letter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no, there is not", "no"),
        ("There is not a dog.", "no"),
        ("NO", "yes"),
        ("Nope", "yes"),
        ("Yes. No dog is there.", "yes"),
        ("banana", "yes"),
        ("No,", "no"),
        ("no\nmore", "yes"),
        ("", None),
        ("  ", None),
    ],
)
def test_popes_rule_is_that_of_its_script(text: str, said: str | None) -> None:
    assert pope_says(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("yes, it is", "yes"),
        ("NO.", "no"),
        (" no", "no"),
        ("not", "no"),
        ("Know", "no"),
        ("I say no", None),
        ("Winter", None),
        ("", None),
    ],
)
def test_mmes_rule_looks_at_four_characters(text: str, said: str | None) -> None:
    assert mme_says(text) == said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Cat.", "cat"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("it's", "it 's"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("red-brown", "red brown"),
        ("red - brown", "red brown"),
        ("hadnt've", "hadn't've"),
        ("a", ""),
        ("what?!", "what"),
    ],
)
def test_words_are_normalised_as_the_vqa_server_does(text: str, words: str) -> None:
    assert vqa_words(text) == words


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_vqa_accuracy_leaves_one_reference_out(matches: int, accuracy: float) -> None:
    references = ["cat"] * matches + [f"dog {n}" for n in range(10 - matches)]
    assert vqa_accuracy("Cat.", references) == pytest.approx(accuracy)


@given(st.text(), st.lists(st.text(), max_size=10))
def test_no_text_upsets_a_parser(text: str, others: list[str]) -> None:
    assert option_letter(text, others) in {None, *"ABCDEFGHIJ"[: len(others)]}
    assert pope_says(text) in (None, "yes", "no")
    assert mme_says(text) in (None, "yes", "no")
    assert 0 <= vqa_accuracy(text, others) <= 1
    assert bare_question(text).split() == bare_question(text).split(" ") or not bare_question(text)


def test_broken_lines_keep_their_places(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('\ufeff{"a": 1},\n\nnot json\n{"a": 2}\n', "utf-8")
    found = [(record.place, record.value) for record in read_records(path, param="answers")]
    assert found == [("line 1", {"a": 1}), ("line 3", None), ("line 4", {"a": 2})]


_SPREADSHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def workbook(path: Path, rows: str, *, strings: str = "", head: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{_SPREADSHEET}" xmlns:r="{_OFFICE}"><sheets>'
            '<sheet name="s" sheetId="1" r:id="rId7"/></sheets></workbook>',
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            '<Relationship Id="rId7" Target="worksheets/data.xml"/></Relationships>',
        )
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{_SPREADSHEET}">{strings}</sst>')
        archive.writestr(
            "xl/worksheets/data.xml",
            f'{head}<worksheet xmlns="{_SPREADSHEET}"><sheetData>{rows}</sheetData></worksheet>',
        )
    return path


_HEADER = (
    '<row><c r="A1" t="inlineStr"><is><t>index</t></is></c>'
    '<c r="C1" t="s"><v>0</v></c><c r="D1" t="str"><v>note</v></c></row>'
)


def test_a_workbook_is_read_as_a_table(tmp_path: Path) -> None:
    strings = "<si><t>prediction</t></si><si><r><t>A. </t></r><r><t>cat</t></r></si>"
    rows = _HEADER + '<row><c r="A2"><v>241.0</v></c><c r="C2" t="s"><v>1</v></c></row>'
    path = workbook(tmp_path / "answers.xlsx", rows, strings=strings)
    (row,) = read_table(path, ("index", "prediction"), param="answers")
    assert (row["index"], row["prediction"], row["note"]) == ("241", "A. cat", "")


@pytest.mark.parametrize(
    ("rows", "head"),
    [
        (_HEADER, '<!DOCTYPE x [<!ENTITY a "b">]>'),
        ('<row><c r="A1" t="s"><v>99</v></c></row>', ""),
        ('<row><c r="ZZZ1"><v>1</v></c></row>', ""),
        ("<row><c>", ""),
    ],
    ids=["document type", "string that is not there", "too many columns", "no XML"],
)
def test_a_hostile_workbook_is_refused(tmp_path: Path, rows: str, head: str) -> None:
    path = workbook(tmp_path / "answers.xlsx", rows, head=head)
    with pytest.raises(InvalidField, match="no readable workbook") as caught:
        read_table(path, ("index",), param="answers")
    assert caught.value.param == "answers"


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.xlsx"
    path.write_bytes(b"index,prediction")
    with pytest.raises(InvalidField, match="not a zip"):
        read_table(path, ("index",), param="answers")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "x")
    with pytest.raises(InvalidField, match=r"xl/workbook\.xml"):
        read_table(path, ("index",), param="answers")
