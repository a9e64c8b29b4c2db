"""Benchmarks from folders of official files: what is asked, of which image, and how graded."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from allrounder.errors import ImageTooLarge, InvalidField, InvalidImage
from allrounder.evaluation.benchmark import Benchmark
from allrounder.evaluation.benchmarks import BENCHMARKS, LOCAL
from allrounder.evaluation.benchmarks.llava_wild import LlavaBenchInTheWild
from allrounder.evaluation.judges import Verdict, WordOverlap
from tests.evaluation.scorer_cases import CASES, SIDE, ScorerCase, llava_wild, mm_vet, png, write

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def opened(case: ScorerCase, folder: Path) -> Benchmark:
    case.make(folder)
    return BENCHMARKS[case.name](folder)


@each_case
def test_items_have_an_image_a_prompt_and_a_grade(case: ScorerCase, tmp_path: Path) -> None:
    items = opened(case, tmp_path).items(limit=100, seed=0)
    for item in items:
        assert (item.image.width, item.image.height) == (SIDE, SIDE)
        assert item.grade("") == 0
        assert item.question.splitlines()[-1].startswith(("Answer ", "请"))
    assert [item.image.digest for item in items] == [item.image.digest for item in items]


@each_case
def test_summaries_give_the_figures_of_the_scorer(case: ScorerCase, tmp_path: Path) -> None:
    benchmark = opened(case, tmp_path)
    items = benchmark.items(limit=100, seed=0)
    texts = case.right[-len(items) :]
    assert case.value(benchmark.summary(items, texts)) == 1
    assert [item.grade(text) for item, text in zip(items, texts, strict=True)] == [1] * len(items)


@each_case
def test_the_same_seed_draws_the_same_items(case: ScorerCase, tmp_path: Path) -> None:
    benchmark = opened(case, tmp_path)
    drawn = [
        [(item.question, item.cluster) for item in benchmark.items(limit=2, seed=seed)]
        for seed in (3, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2
    assert benchmark.items(limit=1, seed=0)


@pytest.mark.parametrize("name", LOCAL)
def test_a_folder_without_the_files_is_refused_with_their_names(name: str, tmp_path: Path) -> None:
    for data in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(InvalidField) as caught:
            BENCHMARKS[name](data).items(limit=1, seed=0)
        assert caught.value.param == "data"
    assert LOCAL[name].files.split()[0] in str(caught.value) or "existence.txt" in str(caught.value)


def test_a_missing_image_is_named_before_anything_runs(tmp_path: Path) -> None:
    case = CASES[0]
    benchmark = opened(case, tmp_path)
    (tmp_path / "val2014" / "b.png").unlink()
    with pytest.raises(InvalidField, match=r"b\.png"):
        benchmark.items(limit=10, seed=0)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_an_image_outside_the_folder_is_not_opened(name: str, tmp_path: Path) -> None:
    write(tmp_path / "secret.png", png())
    case = CASES[0]
    benchmark = opened(case, tmp_path / "data")
    assert isinstance(benchmark, LOCAL[case.name])
    with pytest.raises(InvalidField):
        benchmark.image(name)


def test_damaged_and_oversized_images_are_refused(tmp_path: Path) -> None:
    case = CASES[0]
    benchmark = opened(case, tmp_path)
    write(tmp_path / "val2014" / "a.png", png()[:40])
    with pytest.raises(InvalidImage):
        benchmark.items(limit=10, seed=0)
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60_000).to_bytes(4) + (60_000).to_bytes(4)
    write(tmp_path / "val2014" / "a.png", header + b"\x08\x02\x00\x00\x00" + bytes(4))
    with pytest.raises((ImageTooLarge, InvalidImage)):
        benchmark.items(limit=10, seed=0)


def test_questions_of_one_image_share_a_cluster(tmp_path: Path) -> None:
    items = opened(CASES[0], tmp_path).items(limit=10, seed=0)
    assert [item.cluster for item in items] == [0, 0, 1, 1]


def test_mmbench_asks_every_rotation_of_a_file_that_has_none(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "mmbench")
    table = case.make(tmp_path)
    kept = [line for line in table.read_text("utf-8").split("\n") if "000007" not in line]
    write(table, "\n".join([*kept[:3], kept[-3]]) + "\n")
    benchmark = BENCHMARKS["mmbench"](tmp_path)
    items = benchmark.items(limit=10, seed=0)
    assert len(items) == 5
    assert [item.grade("blue") + item.grade("cat") for item in items] == [1] * 5
    letters = [next(x for x in "ABC" if item.grade(x)) for item in items]
    assert letters == ["B", "A", "C", "A", "B"]
    assert items[0].question.startswith("Look.\nWhich")
    assert benchmark.summary(items, [*letters[:4], "A"]) == {"plain": 1, "circular": 0.5}


def test_mmbench_cn_asks_in_chinese(tmp_path: Path) -> None:
    next(case for case in CASES if case.name == "mmbench").make(tmp_path)
    items = BENCHMARKS["mmbench-cn"](tmp_path).items(limit=10, seed=0)
    assert items[0].question.endswith("请直接回答选项字母。")


def test_mme_reads_the_release_with_a_file_of_questions_an_image(tmp_path: Path) -> None:
    for n in (1, 2):
        write(tmp_path / "posters" / "images" / f"{n}.jpg", png(n))
        text = "Is it A? Please answer yes or no.\tYes\nIs it B? Please answer yes or no.\tNo\n"
        write(tmp_path / "posters" / "questions_answers_YN" / f"{n}.txt", text)
    benchmark = BENCHMARKS["mme"](tmp_path)
    items = benchmark.items(limit=10, seed=0)
    assert items[0].question == "Is it A?\nAnswer the question using a single word or phrase."
    summary = benchmark.summary(items, ["Yes", "No", "Yes", "Yes"])
    assert summary["tasks"] == {"posters": 125}
    assert len(benchmark.items(limit=3, seed=1)) == 2


def test_scienceqa_asks_only_what_has_an_image(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "scienceqa")
    items = opened(case, tmp_path).items(limit=10, seed=0)
    assert [item.type for item in items] == ["image", "image"]


def test_scienceqa_reads_llavas_question_file(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nMetal?\nA. iron\nB. gold"},
        {"from": "gpt", "value": "B"},
    ]
    rows = [{"id": "5", "image": "5/image.png", "conversations": turns}]
    write(tmp_path / "llava_test_CQM-A.json", rows)
    write(tmp_path / "images" / "test" / "5" / "image.png", png())
    (item,) = BENCHMARKS["scienceqa"](tmp_path).items(limit=10, seed=0)
    assert item.question.startswith("Metal?\nA. iron\nB. gold\nAnswer with the option")
    assert (item.grade("B. gold"), item.grade("gold"), item.grade("iron")) == (1, 1, 0)


def test_textvqa_takes_llavas_prompts_where_they_lie_beside(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "textvqa")
    case.make(tmp_path)
    text = "What brand?\nReference OCR token: X\nAnswer briefly."
    line = f'{{"question_id": "img", "text": {text!r}}}'.replace("'", '"')
    write(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", line + "\n")
    questions = [item.question for item in BENCHMARKS["textvqa"](tmp_path).items(limit=9, seed=0)]
    assert questions[0] == text
    assert questions[1].startswith("Which number?\nAnswer the question")


def test_easy_vqa_reads_images_out_of_its_archive(tmp_path: Path) -> None:
    write(tmp_path / "train_questions.json", [["what shape?", "circle", 4]])
    with zipfile.ZipFile(tmp_path / "train_images.zip", "w") as archive:
        archive.writestr("train/images/4.png", png(4))
    (item,) = BENCHMARKS["easy-vqa"](tmp_path).items(limit=10, seed=0)
    assert item.image.width == SIDE
    write(tmp_path / "train_images.zip", b"PK not a zip")
    with pytest.raises(InvalidField, match="train_images"):
        BENCHMARKS["easy-vqa"](tmp_path).items(limit=10, seed=0)


def test_aokvqa_direct_leaves_difficult_questions_out(tmp_path: Path) -> None:
    next(case for case in CASES if case.name == "aokvqa").make(tmp_path)
    items = BENCHMARKS["aokvqa-direct"](tmp_path).items(limit=10, seed=0)
    assert len(items) == 2
    assert items[0].grade("eat") == pytest.approx(2 / 3)
    assert items[0].grade("ride") == 1


class Strict:
    official = True

    def __call__(self, question: str, reference: str, answer: str) -> Verdict:
        return Verdict(reference=8, answer=8 if answer == reference else 2)


def test_llava_bench_takes_any_judge(tmp_path: Path) -> None:
    llava_wild(tmp_path)
    benchmark = LlavaBenchInTheWild(tmp_path, judge=Strict())
    items = benchmark.items(limit=10, seed=0)
    answers = ["a tall green hill", "a tall green hill", "no"]
    assert benchmark.summary(items, answers)["relative"] == 75
    assert items[0].grade("no") == 0.2


def test_the_stand_in_judge_gives_no_official_figures(tmp_path: Path) -> None:
    llava_wild(tmp_path)
    benchmark = BENCHMARKS["llava-bench-in-the-wild"](tmp_path)
    items = benchmark.items(limit=10, seed=0)
    assert items[0].grade("a tall green hill") == 1
    assert 0 < items[0].grade("a green lake") < 1
    assert benchmark.summary(items, ["x"] * 3) == {}
    assert WordOverlap()("", "", "").answer == 0


def test_mm_vet_counts_the_parts_that_are_named(tmp_path: Path) -> None:
    mm_vet(tmp_path)
    items = BENCHMARKS["mm-vet"](tmp_path).items(limit=10, seed=0)
    assert items[0].grade("There are two kittens.") == 1
    assert items[0].grade("12 cats") == 0.5
    assert BENCHMARKS["mm-vet"](tmp_path).summary(items, ["x"] * 3) == {}
