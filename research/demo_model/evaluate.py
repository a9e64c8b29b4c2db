"""Held-out evaluation of saved weights through plain transformers: AutoProcessor and generate."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from allrounder.demo.held_out import Exam, draw_exams, draw_questions
from allrounder.demo.questions import TYPES, Question, is_correct, score_answer
from allrounder.measure.statistics import Estimate, clustered_mean
from allrounder.models.loading import EMBEDDED_FOLDER
from research.demo_model.question_only import QuestionOnly, learn_question_only

WEIGHTS = EMBEDDED_FOLDER
MAX_NEW_TOKENS = 24
# What a type must gain over the wording alone before it counts as seen in the image.
MIN_MARGIN = 0.25


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Mean grade of a type beside that of the same questions without the image, graded alike."""

    name: str
    accuracy: Estimate
    question_only: float

    @property
    def margin(self) -> float:
        return self.accuracy.value - self.question_only

    @property
    def is_too_near(self) -> bool:
        """Less than `MIN_MARGIN` above question-only although there is room for it."""
        return self.margin < MIN_MARGIN <= 1 - self.question_only


class Answerer:
    """The saved model and processor, used as any user of transformers would."""

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
        processor = AutoProcessor.from_pretrained(folder)
        assert isinstance(processor, LlavaProcessor)
        self.processor = processor

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """One greedy answer per (image, question) pair."""
        prompts = [self._prompt(question) for question in questions]
        inputs = self.processor(
            text=prompts, images=list(images), return_tensors="pt", padding=True
        )
        ids = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _prompt(self, question: str) -> str:
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        prompt: str = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        return prompt


def evaluate_weights(
    folder: Path, exams: Sequence[Exam], blind: QuestionOnly, *, batch_size: int
) -> list[ScoreRow]:
    """Overall and by type; answers of like length share a batch, which saves steps."""
    answerer = Answerer(folder)
    pairs = [(image_idx, q) for image_idx, exam in enumerate(exams) for q in exam.questions]
    pairs.sort(key=lambda pair: len(pair[1].answers[0]))
    images = [Image.fromarray(exam.image) for exam in exams]
    answers: list[str] = []
    for start in tqdm(range(0, len(pairs), batch_size), desc="evaluation"):
        batch = pairs[start : start + batch_size]
        answers += answerer.answer([images[p] for p, _ in batch], [q.text for _, q in batch])
    return rows_of([q for _, q in pairs], [p for p, _ in pairs], answers, blind)


def rows_of(
    questions: Sequence[Question],
    images: Sequence[int],
    answers: Sequence[str],
    blind: QuestionOnly,
) -> list[ScoreRow]:
    """Overall and by type, and descriptions once more by exact match."""
    blind_answers = [blind.answer(question) for question in questions]
    mine, theirs = (
        accuracy_by_type(questions, images, list(map(score_answer, given, questions)))
        for given in (answers, blind_answers)
    )
    rows = [
        ScoreRow(name=name, accuracy=accuracy, question_only=theirs[name].value)
        for name, accuracy in mine.items()
    ]
    return [*rows, *_exact_descriptions(questions, images, answers, blind_answers)]


def accuracy_by_type(
    questions: Sequence[Question], images: Sequence[int], grades: Sequence[float]
) -> dict[str, Estimate]:
    """`overall` first, then each type; `images` tells which image each question is about.

    The questions about one image count as one draw.
    """
    chosen = {"overall": list(range(len(questions)))}
    for name in TYPES:
        of_type = [idx for idx, question in enumerate(questions) if question.type == name]
        if of_type:
            chosen[name] = of_type
    return {
        name: clustered_mean([float(grades[idx]) for idx in of], [images[idx] for idx in of])
        for name, of in chosen.items()
    }


def format_rows(rows: Sequence[ScoreRow]) -> str:
    """A Markdown table, and what it says of the margins."""
    lines = [
        "| type | accuracy | standard error | question-only | margin | n |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy, mark = row.accuracy, " (!)" if row.is_too_near else ""
        lines.append(
            f"| {row.name} | {accuracy.value:.3f} | {accuracy.stderr:.3f} "
            f"| {row.question_only:.3f} | {row.margin:+.3f}{mark} | {accuracy.n} |"
        )
    near = [row.name for row in rows if row.is_too_near]
    points = round(100 * MIN_MARGIN)
    return "\n".join(
        [
            *lines,
            "",
            "Descriptions are graded by the attributes named right (F1), all else by exact match.",
            f"At least {points} points above question-only where that leaves room: "
            + (f"all but {', '.join(near)}" if near else "every type"),
        ]
    )


def _exact_descriptions(
    questions: Sequence[Question],
    images: Sequence[int],
    answers: Sequence[str],
    blind_answers: Sequence[str],
) -> list[ScoreRow]:
    chosen = [idx for idx, question in enumerate(questions) if question.described]
    if not chosen:
        return []
    mine, theirs = (
        clustered_mean(
            [float(is_correct(given[idx], questions[idx])) for idx in chosen],
            [images[idx] for idx in chosen],
        )
        for given in (answers, blind_answers)
    )
    return [ScoreRow(name="describe (exact)", accuracy=mine, question_only=theirs.value)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--scenes", type=int, default=300)
    size.add_argument("--questions", type=int, help="instead of --scenes: so many questions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--big-single", action="store_true", help="one large shape, plain")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    draw, count = (
        (draw_exams, options.scenes)
        if options.questions is None
        else (draw_questions, options.questions)
    )
    exams = draw(count, seed=options.seed, big_single=options.big_single)
    blind = learn_question_only(big_single=options.big_single)
    rows = evaluate_weights(options.weights, exams, blind, batch_size=options.batch_size)
    sys.stdout.write(format_rows(rows) + "\n")


if __name__ == "__main__":
    main()
