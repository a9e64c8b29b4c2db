"""TextVQA: questions that need the text in an image to be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from allrounder.evaluation.grading import LabelledQuestion
from allrounder.evaluation.local import LocalBenchmark, first_file
from allrounder.evaluation.official_files import read_json, read_rows, unusable
from allrounder.evaluation.reading import ONE_WORD, bare_question, vqa_accuracy

NUM_REFERENCES = 10


class TextVqa(LocalBenchmark):
    """Singh et al., Towards VQA Models That Can Read (1904.08920), split val of version 0.5.1.

    Metric: `accuracy`, the mean of VQA accuracy over ten people's answers (`vqa_accuracy`), after
    the evaluation server's normalisation.

    Files: `TextVQA_0.5.1_val.json` ({"data": [{question_id, image_id, question, answers}]}),
    images in `train_images/<image_id>.jpg`; `llava_textvqa_val_v051_ocr.jsonl`, where present,
    gives the prompts with OCR tokens that LLaVA's published scores were made with. Answers: lines
    with text and the official question_id, or LLaVA's, whose question_id is the image's and whose
    prompt has the question.
    """

    name = "textvqa"
    files = "TextVQA_0.5.1_val.json and train_images/<image_id>.jpg"
    label_files: ClassVar[tuple[str, ...]] = ("TextVQA_0.5.1_val.json", "TextVQA*val*.json")
    image_folders: ClassVar[tuple[str, ...]] = ("train_images", "train_val_images", "images", ".")

    def rows(self) -> list[LabelledQuestion]:
        rows = super().rows()
        prompts = first_file(self.data, ("llava_textvqa_val*.jsonl",))
        if prompts is None:
            return rows
        known = {
            (str(line["question_id"]), bare_question(str(line["text"]).partition("\n")[0])): str(
                line["text"]
            )
            for line in read_rows(prompts, ("question_id", "text"), param="data")
        }
        return [
            replace(row, prompt=known.get((row.alias, bare_question(row.text)), row.prompt))
            for row in rows
        ]

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        found = read_json(path, param=param)
        values = found.get("data") if isinstance(found, dict) else found
        rows = []
        for place, value in enumerate(values if isinstance(values, list) else [], 1):
            people = value.get("answers") if isinstance(value, dict) else None
            if not isinstance(people, list) or len(people) != NUM_REFERENCES:
                raise unusable(path, f"question {place} has not ten answers", param=param)
            question, image = str(value.get("question", "")), str(value.get("image_id", ""))
            rows.append(
                LabelledQuestion(
                    id=str(value.get("question_id", place)),
                    alias=image,
                    text=question,
                    prompt=f"{question}\n{ONE_WORD}",
                    labels=tuple(map(str, people)),
                    image=f"{image}.jpg" if image else "",
                )
            )
        if not rows:
            raise unusable(path, "holds no questions under 'data'", param=param)
        return rows

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return vqa_accuracy(answer, row.labels)
