"""Questions about one image that share its rows have the attention that each has alone."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

from allrounder.measure.frozen import FrozenModel
from allrounder.models.transformers import TransformersAdapter
from allrounder.training.distillation import question_attention, share_prefix
from tests.families.cases import FamilyCase
from tests.tiny import noise_image

pytestmark = pytest.mark.timeout(90)
QUESTIONS = ("Why?", "What is the colour of the largest shape?", "How many are there?")


def test_a_shared_image_changes_no_attention(
    case: FamilyCase, adapter: TransformersAdapter
) -> None:
    frozen = FrozenModel(adapter, max_answer_tokens=1)
    width, height = case.sizes[-1]
    image = noise_image(3, width=width, height=height)
    visual = frozen.encode(image)
    asked = [frozen.ask(image, visual, question) for question in QUESTIONS]
    assert share_prefix(asked)
    last = adapter.geometry.num_layers - 1
    for layer_idx in (0, last // 2, last):
        alone = frozen.answer(asked, probed_layers=[layer_idx])
        together = question_attention(frozen, asked, layer_idx)
        for one, answer, rows_HQV in zip(asked, alone, together, strict=True):
            count = one.prompt.question_slot[1]
            expected_HQV = answer.attention[layer_idx][:, -count:]
            assert_close(rows_HQV, expected_HQV.to(rows_HQV), atol=1e-5, rtol=1e-4)


def test_questions_of_images_of_other_sizes_share_nothing(
    case: FamilyCase, adapter: TransformersAdapter
) -> None:
    frozen = FrozenModel(adapter)
    asked = []
    for width, height in (case.sizes[0], case.sizes[-1]):
        image = noise_image(3, width=width, height=height)
        asked.append(frozen.ask(image, frozen.encode(image), QUESTIONS[0]))
    alike = len(asked[0].visual_VD) == len(asked[1].visual_VD)
    assert share_prefix(asked) == alike
