"""Answers from files: right, wrong, malformed, empty, missing, duplicated and extra ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.errors import InvalidField
from allrounder.evaluation.benchmarks import LOCAL
from allrounder.evaluation.grading import GivenAnswer, LabelledQuestion, Problems, join
from allrounder.evaluation.local import ScoreFiles
from tests.evaluation.scorer_cases import CASES, ScorerCase, lines, llava_wild, mm_vet, write

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def graded(case: ScorerCase, folder: Path, entries: list[Any]) -> dict[str, Any]:
    labels = case.make(folder / "data")
    answers = write(
        folder / "answers.jsonl",
        "".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries),
    )
    return LOCAL[case.name].score(ScoreFiles(labels=labels, answers=answers))


def all_right(case: ScorerCase) -> list[Any]:
    return [case.line(place, text) for place, text in enumerate(case.right)]


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {kind: found["count"] for kind, found in report["problems"].items() if found["count"]}


@each_case
def test_right_answers_score_full_marks(case: ScorerCase, tmp_path: Path) -> None:
    report = graded(case, tmp_path, all_right(case))
    assert case.value(report) == 1
    assert counts(report) == {}
    assert report["n"] == len(case.ids)


@each_case
def test_wrong_answers_score_nothing(case: ScorerCase, tmp_path: Path) -> None:
    entries = [case.line(place, text) for place, text in enumerate(case.wrong)]
    report = graded(case, tmp_path, entries)
    assert case.value(report) == 0
    assert set(counts(report)) <= {"unreadable"}


@each_case
def test_a_missing_answer_is_wrong_and_named(case: ScorerCase, tmp_path: Path) -> None:
    report = graded(case, tmp_path, all_right(case)[1:])
    assert case.value(report) < 1
    assert counts(report) == {"missing": 1}
    assert report["problems"]["missing"]["first"] == [case.ids[0].removesuffix(".png")]


@each_case
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_is_wrong_and_named(case: ScorerCase, tmp_path: Path, text: str) -> None:
    report = graded(case, tmp_path, [case.line(0, text), *all_right(case)[1:]])
    assert case.value(report) < 1
    assert counts(report) == {"empty": 1}


@each_case
def test_a_duplicate_is_named_and_the_first_counts(case: ScorerCase, tmp_path: Path) -> None:
    again = case.line(1, case.wrong[1])
    report = graded(case, tmp_path, [*all_right(case), again])
    assert case.value(report) == 1
    assert counts(report) == {"duplicated": 1}


@each_case
def test_an_answer_to_no_question_is_named_and_changes_nothing(
    case: ScorerCase, tmp_path: Path
) -> None:
    extra = {"question_id": "nowhere/77", "text": "Yes"}
    report = graded(case, tmp_path, [extra, *all_right(case)])
    assert case.value(report) == 1
    assert counts(report) == {"extra": 1}
    assert report["problems"]["extra"]["first"] == ["nowhere/77"]


@each_case
@pytest.mark.parametrize("spoilt", ['{"question_id": ', "[]", "17", '"yes"', "[" * 5000])
def test_a_line_that_is_no_answer_is_named(case: ScorerCase, tmp_path: Path, spoilt: str) -> None:
    report = graded(case, tmp_path, [spoilt, *all_right(case)[1:]])
    assert case.value(report) < 1
    assert counts(report) == {"malformed": 1, "missing": 1}
    assert report["problems"]["malformed"]["first"] == ["line 1"]


@each_case
@pytest.mark.parametrize("text", [None, 3, ["Yes"], {"a": 1}])
def test_an_answer_without_text_is_malformed_not_missing(
    case: ScorerCase, tmp_path: Path, text: Any
) -> None:
    report = graded(case, tmp_path, [case.line(0, text), *all_right(case)[1:]])
    assert case.value(report) < 1
    assert counts(report) == {"malformed": 1}


@each_case
def test_the_order_of_lines_with_ids_changes_nothing(case: ScorerCase, tmp_path: Path) -> None:
    mixed = [case.line(n, (case.right if n % 2 else case.wrong)[n]) for n in range(len(case.ids))]
    expected = graded(case, tmp_path, mixed)
    for seed in range(5):
        random.Random(seed).shuffle(mixed)
        report = graded(case, tmp_path, mixed)
        assert {**report, "problems": counts(report)} == {**expected, "problems": counts(expected)}


@each_case
@given(text=st.text())
def test_no_text_makes_a_grader_raise(
    case: ScorerCase, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = _rows(case, tmp_path_factory)
    for row in rows:
        assert 0 <= LOCAL[case.name].grade(row, text) <= 1


_READ: dict[str, list[LabelledQuestion]] = {}


def _rows(case: ScorerCase, factory: pytest.TempPathFactory) -> list[LabelledQuestion]:
    if case.name not in _READ:
        folder = factory.mktemp("data")
        case.make(folder)
        _READ[case.name] = LOCAL[case.name](folder).rows()
    return _READ[case.name]


@given(data=st.data())
def test_what_is_joined_missing_or_extra_adds_up(data: st.DataObject) -> None:
    names = st.sampled_from("abcdef")
    rows = [LabelledQuestion(id=name) for name in data.draw(st.lists(names, max_size=8))]
    answers = [
        GivenAnswer(place=f"line {n}", id=name, text=text)
        for n, (name, text) in enumerate(
            data.draw(st.lists(st.tuples(names, st.sampled_from(["x", None])), max_size=10))
        )
    ]
    problems = Problems()
    texts = join(rows, answers, problems)
    found = {kind: len(ids) for kind, ids in problems.found.items()}
    placed = sum(text is not None for text in texts)
    assert placed + found["extra"] + found["duplicated"] + found["malformed"] == len(answers)
    assert len(rows) - placed >= found["missing"]


def test_ids_that_restart_in_every_split_are_joined_by_order(tmp_path: Path) -> None:
    asked = [("a.jpg", "Is there a cat?", "yes"), ("a.jpg", "Is there a dog?", "no")]
    for split in ("adversarial", "popular", "random"):
        rows = [
            {"question_id": n, "image": image, "text": text, "label": label}
            for n, (image, text, label) in enumerate(asked, 1)
        ]
        lines(tmp_path / "labels" / f"coco_pope_{split}.json", rows)
    suffix = "\nAnswer the question using a single word or phrase."
    questions = [
        {"question_id": n, "image": image, "text": text + suffix, "category": split}
        for split in ("random", "adversarial", "popular")
        for n, (image, text, _) in enumerate(asked, 1)
    ]
    said = ["Yes", "No", "No", "Yes", "Yes", "Yes"]
    answers = [
        {"question_id": q["question_id"], "prompt": q["text"], "text": text}
        for q, text in zip(questions, said, strict=True)
    ]
    files = ScoreFiles(
        labels=tmp_path / "labels",
        questions=lines(tmp_path / "questions.jsonl", questions),
        answers=lines(tmp_path / "answers.jsonl", answers),
    )
    report = LOCAL["pope"].score(files)
    accuracy = {split: report[split]["accuracy"] for split in ("random", "adversarial", "popular")}
    assert accuracy == {"random": 1, "adversarial": 0, "popular": 0.5}
    lines(files.answers, answers[:2] + answers[3:])
    report = LOCAL["pope"].score(files)
    assert counts(report) == {"missing": 1}
    assert report["random"]["accuracy"] == 1
    lines(files.answers, answers[:3] + answers[2:])
    report = LOCAL["pope"].score(files)
    assert counts(report) == {"duplicated": 1}
    assert report["popular"]["accuracy"] == 0.5


def test_popes_splits_are_each_read_from_their_official_file_if_they_have_one(
    tmp_path: Path,
) -> None:
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"}
    folder = tmp_path / "labels"
    for name in ("coco_pope_random", "coco_pope_random.old", "pope_popular_part", "other_pope"):
        lines(folder / f"{name}.json", [row])
    answers = lines(tmp_path / "answers.jsonl", [{"question_id": 1, "text": "Yes"}] * 3)
    report = LOCAL["pope"].score(ScoreFiles(labels=folder, answers=answers))
    assert report["n"] == 3
    assert {"random", "popular", "other_pope"} <= set(report)


def test_popes_exam_is_what_the_question_file_asks(tmp_path: Path) -> None:
    labels = [
        {"question_id": n, "image": "a.jpg", "text": f"Is there a {what}?", "label": "yes"}
        for n, what in enumerate(("cat", "dog", "fox"), 1)
    ]
    lines(tmp_path / "labels" / "coco_pope_random.json", labels)
    lines(tmp_path / "labels" / "coco_pope_random.old.json", labels)
    lines(tmp_path / "labels" / "coco_pope_popular.json", labels)
    questions = [
        {"question_id": 7, "image": "a.jpg", "text": "Is there a dog?", "category": "random"},
        {"question_id": 8, "image": "a.jpg", "text": "Is there a cow?", "category": "random"},
    ]
    answers = [{"question_id": n, "text": "Yes"} for n in (7, 8)]
    files = ScoreFiles(
        labels=tmp_path / "labels",
        questions=lines(tmp_path / "questions.jsonl", questions),
        answers=lines(tmp_path / "answers.jsonl", answers),
    )
    report = LOCAL["pope"].score(files)
    assert (report["n"], report["random"]["accuracy"]) == (1, 1)
    assert "popular" not in report
    assert counts(report) == {"unasked": 5, "unlabelled": 1, "extra": 1}
    lines(tmp_path / "questions.jsonl", questions[1:])
    with pytest.raises(InvalidField, match="asks nothing"):
        LOCAL["pope"].score(files)


def test_pope_gives_the_five_figures_of_its_paper(tmp_path: Path) -> None:
    case = CASES[0]
    report = graded(case, tmp_path, [case.line(n, t) for n, t in enumerate(["Yes"] * 3 + ["No"])])
    assert report["popular"] == pytest.approx(
        {"accuracy": 0.75, "precision": 2 / 3, "recall": 1, "f1": 0.8, "yes_ratio": 0.75}
    )
    missing = graded(case, tmp_path, [case.line(0, "Yes")])["popular"]
    assert missing == pytest.approx(
        {"accuracy": 0.25, "precision": 1, "recall": 0.5, "f1": 2 / 3, "yes_ratio": 0.25}
    )


def test_a_question_of_another_release_is_not_graded_by_the_wrong_label(tmp_path: Path) -> None:
    case = CASES[0]
    other = {**case.line(1, "No"), "prompt": "Is there a zebra?\nOne word."}
    report = graded(case, tmp_path, [case.line(0, "Yes"), other, *all_right(case)[2:]])
    assert counts(report) == {"missing": 1, "extra": 1}


def _folder(tmp_path: Path, text: str) -> Path:
    write(tmp_path / "given" / "existence.txt", text)
    return tmp_path / "given"


def test_mme_folders_are_graded_over_the_images_they_hold(tmp_path: Path) -> None:
    labels = CASES[1].make(tmp_path / "data")
    asks = "Please answer yes or no."
    text = (
        f"1.txt\tIs it existence 1? {asks}\tYes\tYes\n"
        f"1.txt\tIs it not existence 1? {asks}\tNo\tYes\n"
        f"5.txt\tIs it new?\tYes\tYes\n5.txt\tIs it old?\tNo\tNo, never\n"
    )
    report = LOCAL["mme"].score(ScoreFiles(labels=labels, answers=_folder(tmp_path, text)))
    assert report["tasks"] == {"existence": 125, "code_reasoning": 0}
    assert report["strict"]["tasks"]["existence"] == 25
    assert counts(report) == {"missing": 6, "extra": 2}
    alone = LOCAL["mme"].score(ScoreFiles(answers=_folder(tmp_path, text)))
    assert (alone["perception"], alone["cognition"]) == (125, 0)
    assert counts(alone) == {}


def test_mme_rows_of_three_columns_are_malformed(tmp_path: Path) -> None:
    text = "1.png\tIs it?\tYes\n1.png\tIs it not?\tNo\tNo\n2.png\tIs it?\tPerhaps\tYes\n"
    report = LOCAL["mme"].score(ScoreFiles(answers=_folder(tmp_path, text)))
    assert report["problems"]["malformed"]["first"] == [
        "existence.txt line 1",
        "existence.txt line 3",
    ]


def test_mmbench_counts_a_question_only_if_every_rotation_is_right(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "mmbench")
    texts = ["B", "C", "A", "B"]
    report = graded(case, tmp_path, [case.line(n, text) for n, text in enumerate(texts)])
    assert (report["plain"], report["circular"]) == (1, 0.5)


def test_one_mmbench_table_may_hold_labels_and_predictions(tmp_path: Path) -> None:
    text = "index\tA\tB\tanswer\tprediction\n1\tcat\tdog\tA\tA. cat\n2\tcat\tdog\tB\t\n"
    table = write(tmp_path / "both.tsv", text)
    report = LOCAL["mmbench"].score(ScoreFiles(labels=table, answers=table))
    assert (report["plain"], report["circular"]) == (0.5, 0.5)
    assert counts(report) == {"empty": 1}


def test_scienceqa_reads_result_files_and_counts_images_apart(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "scienceqa")
    labels = case.make(tmp_path / "data")
    results = {"acc": 0, "results": {"3": 0, "5": -1, "8": 1}, "outputs": {"3": "A"}}
    answers = write(tmp_path / "results.json", results)
    report = LOCAL["scienceqa"].score(ScoreFiles(labels=labels, answers=answers))
    assert (report["all"], report["image"]) == (pytest.approx(2 / 3), 0.5)
    assert counts(report) == {"unreadable": 1}


def test_seed_lines_may_carry_their_labels_and_trailing_commas(tmp_path: Path) -> None:
    rows = [("7", "A", "A"), ("8", "B", "C"), ("9", "", "D")]
    text = "".join(
        json.dumps({"question_id": name, "prediction": said, "gt_answer": label}) + ",\n"
        for name, said, label in rows
    )
    answers = write(tmp_path / "lines.txt", text)
    report = LOCAL["seed-bench"].score(ScoreFiles(answers=answers))
    assert report["accuracy"] == pytest.approx(1 / 3)
    assert counts(report) == {"empty": 1}


def test_aokvqa_grades_both_settings_of_an_official_file(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "aokvqa")
    labels = case.make(tmp_path / "data")
    both = {
        "q0": {"multiple_choice": "ride", "direct_answer": "eat"},
        "q1": {"multiple_choice": "read", "direct_answer": "ride"},
        "q2": {"multiple_choice": "sleep", "direct_answer": "anything"},
    }
    answers = write(tmp_path / "predictions.json", both)
    report = LOCAL["aokvqa"].score(ScoreFiles(labels=labels, answers=answers))
    assert report["multiple_choice"] == pytest.approx(2 / 3)
    assert report["direct_answer"] == pytest.approx((2 / 3 + 1) / 2)


def test_textvqa_joins_llava_lines_by_image_and_question(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "textvqa")
    asked = ("Which number?", "What brand?", "Who won?")
    suffix = "\nReference OCR token: A, B\nAnswer the question using a single word or phrase."
    entries = [
        {"question_id": "img", "prompt": question + suffix, "text": text}
        for question, text in zip(asked, ("two", "Dakota", "Blues"), strict=True)
    ]
    report = graded(case, tmp_path, entries)
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert counts(report) == {}


def _review(name: int, scores: Any, **more: Any) -> dict[str, Any]:
    return {"question_id": name, "category": "llava_bench_conv", "tuple": scores, **more}


def test_llava_bench_compares_mean_scores(tmp_path: Path) -> None:
    labels = llava_wild(tmp_path)
    reviews = [_review(0, [8, 4]), _review(1, [10, 9]), _review(2, [6, 5])]
    files = ScoreFiles(labels=labels, answers=lines(tmp_path / "reviews.jsonl", reviews))
    report = LOCAL["llava-bench-in-the-wild"].score(files)
    assert report["relative"] == pytest.approx(75)
    assert report["categories"]["conv"] == {"relative": 50, "reference": 8, "model": 4}
    assert counts(report) == {}


@pytest.mark.parametrize("scores", [[-1, -1], [8], None, ["x", "y"], [8, 11], [0, 5], [True, {}]])
def test_a_review_without_two_scores_counts_as_zero(tmp_path: Path, scores: Any) -> None:
    labels = llava_wild(tmp_path)
    reviews = [_review(0, [8, 8]), _review(1, scores), _review(2, [8, 8]), _review(9, [8, 8])]
    files = ScoreFiles(labels=labels, answers=lines(tmp_path / "reviews.jsonl", reviews))
    report = LOCAL["llava-bench-in-the-wild"].score(files)
    assert report["relative"] < 101
    assert report["categories"]["detail"]["model"] == 0
    assert counts(report) == {"malformed": 1, "extra": 1}


def test_review_scores_are_read_from_the_text_where_there_is_no_tuple(tmp_path: Path) -> None:
    review = {"question_id": 0, "content": "8, 6\nThe first is better."}
    answers = lines(tmp_path / "reviews.jsonl", [review])
    report = LOCAL["llava-bench-in-the-wild"].score(ScoreFiles(answers=answers))
    assert report["relative"] == 75


def _gradings(*scores: Any) -> dict[str, Any]:
    return {f"v1_{n}": {"model": ["gpt-4"], "score": given} for n, given in enumerate(scores)}


def test_mm_vet_averages_runs_and_capabilities(tmp_path: Path) -> None:
    answers = write(tmp_path / "grades.json", _gradings([1.0, 0.4], [0.5, 0.5], [0.0, 0.3]))
    report = LOCAL["mm-vet"].score(ScoreFiles(labels=mm_vet(tmp_path), answers=answers))
    assert (report["total"], report["runs"], report["std"]) == (45, [50, 40], 5)
    assert report["capabilities"] == {"math": 50, "ocr": 32.5, "rec": 70}
    assert report["integrations"] == {"math+ocr": 50, "ocr": 15, "rec": 70}


def test_mm_vet_names_grades_that_are_missing_extra_or_none(tmp_path: Path) -> None:
    grades = _gradings([1.0], [7]) | {"v1_9": {"score": [1.0]}}
    answers = write(tmp_path / "grades.json", grades)
    report = LOCAL["mm-vet"].score(ScoreFiles(labels=mm_vet(tmp_path), answers=answers))
    assert report["total"] == pytest.approx(33.3)
    assert counts(report) == {"missing": 1, "malformed": 1, "extra": 1}


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"[]", b"{}", b"[1]", b"null"])
def test_unusable_labels_are_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "labels.json", content)
    answers = lines(tmp_path / "answers.jsonl", [{"question_id": "1", "text": "Yes"}])
    with pytest.raises(InvalidField) as caught:
        LOCAL[name].score(ScoreFiles(labels=path, answers=answers))
    assert caught.value.param in ("labels", "answers")
    assert caught.value.message.startswith(str(tmp_path))
