"""Held-out evaluation of saved weights through plain transformers: AutoProcessor and generate."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from app.demo.held_out import Exam, Score, draw_exams, score
from app.demo.questions import is_correct

WEIGHTS = Path(__file__).parent / "weights"
MAX_NEW_TOKENS = 24


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


def evaluate_weights(folder: Path, exams: Sequence[Exam], *, batch_size: int) -> list[Score]:
    """Accuracy overall and by type; answers of like length share a batch, which saves steps."""
    answerer = Answerer(folder)
    pairs = [(picture, q) for picture, exam in enumerate(exams) for q in exam.questions]
    pairs.sort(key=lambda pair: len(pair[1].answers[0]))
    images = [Image.fromarray(exam.image) for exam in exams]
    right: list[bool] = []
    for start in tqdm(range(0, len(pairs), batch_size), desc="evaluation"):
        batch = pairs[start : start + batch_size]
        answers = answerer.answer([images[p] for p, _ in batch], [q.text for _, q in batch])
        right += [is_correct(text, q) for text, (_, q) in zip(answers, batch, strict=True)]
    return score([q for _, q in pairs], [picture for picture, _ in pairs], right)


def format_scores(scores: Sequence[Score]) -> str:
    """A Markdown table."""
    lines = ["| type | accuracy | standard error | n |", "|---|---|---|---|"]
    lines += [
        f"| {s.name} | {s.accuracy:.3f} | {s.standard_error:.3f} | {s.num_questions} |"
        for s in scores
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--big-single", action="store_true", help="one large shape, plain")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    exams = draw_exams(options.scenes, seed=options.seed, big_single=options.big_single)
    scores = evaluate_weights(options.weights, exams, batch_size=options.batch_size)
    sys.stdout.write(format_scores(scores) + "\n")


if __name__ == "__main__":
    main()
