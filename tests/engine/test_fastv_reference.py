"""FastV and ShortGPT on a random LLaVA against what plain transformers shows of its attention."""

from __future__ import annotations

from pathlib import Path

import torch

from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import answers
from tests.families.reference import Reference
from tests.tiny import chat_request


def test_fastv_keeps_what_the_librarys_own_attention_says(
    llava_folder: Path, runner: ModelRunner, adapter: TransformersAdapter
) -> None:
    reference = Reference(llava_folder)
    for seed, layer in ((0, 2), (1, 2), (2, 4)):
        request = chat_request(
            seed, form=Counts(tokens=12), strategy="fastv", options={"layer": layer}
        )
        prompt = adapter.prompt(request.question, [adapter.layout(request.images[0])])
        with torch.inference_mode():
            shown = reference.model(**reference.inputs(request), output_attentions=True).attentions[
                layer - 1
            ]
        start, count = prompt.visual_slots[0]
        scores = shown[0, :, -1, start : start + count].double().mean(0).tolist()
        expected = sorted(sorted(range(count), key=lambda idx: -scores[idx])[:12])
        kept = answers(runner, [request])[request.id].plan.kept
        assert list(kept or ()) == expected
