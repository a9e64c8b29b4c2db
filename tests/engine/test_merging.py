"""Merging before the decoder equals the library on merged rows, with the dropped ones masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.transformers import TransformersAdapter
from tests.cases import STRATEGIES, StrategyCase
from tests.engine.driving import recorded
from tests.families.reference import Reference
from tests.tiny import chat_request

pytestmark = pytest.mark.timeout(90)
NAMES = ("visionzip", "prumerge", "pool")


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize(
    "case", [case for case in STRATEGIES if case.name.partition("+")[0] in NAMES], ids=str
)
def test_what_is_merged_equals_the_library_on_merged_rows(
    case: StrategyCase,
    num_images: int,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    llava_folder: Path,
) -> None:
    layers = 5 if case.prunes_layers else None
    request = chat_request(
        4,
        num_images=num_images,
        form=Counts(tokens=9 * num_images, layers=layers),
        strategy=case.name,
        options=case.options,
    )
    sequence, ours = recorded(runner, adapter, request)
    reference = Reference(llava_folder)
    visual = torch.tensor(sequence.prepared.prompt.visual_rows)
    weights, kept = sequence.weights[0], torch.tensor(sequence.plan.kept)
    assert weights.shape == (len(kept), len(visual))
    assert (weights > 0).sum() > len(kept)

    def merge(_layer: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0].clone()
        hidden[0, visual[kept]] = weights @ hidden[0, visual]
        return (hidden, *args[1:]), kwargs

    first = reference.model.get_decoder().layers[0]
    with first.register_forward_pre_hook(merge, with_kwargs=True):
        theirs = reference.logits(request, sequence.token_ids, sequence.plan)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
