"""Kept tokens fall on the object that the question names, more often than random ones do."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from allrounder.demo.questions import ask_questions
from allrounder.demo.scene_pool import pool_scene
from allrounder.demo.scenes import NUM_PATCHES, SceneSplit, object_patches, render
from tests.service.conftest import Service

NUM_SCENES = 60
BUDGET = 0.25
TYPES = ("colour", "shape", "where", "describe")


@pytest.mark.timeout(180)
def test_kept_tokens_fall_on_the_named_object(
    service: Service, record_property: Callable[[str, object], None]
) -> None:
    gains, kept_shares, random_shares = [], [], []
    for index in range(NUM_SCENES):
        scene, rng = pool_scene(SceneSplit.TEST, 0, index)
        questions = ask_questions(scene, Random(index), per_type=1, types=TYPES)
        question = next((q for q in questions if len(q.objects) == 1), None)
        if question is None:
            continue
        answer = service.chat(render(scene, rng), question.text, budget=BUDGET, explain=True)
        kept = answer["pruning"]["kept"][0]["indices"]
        shown = object_patches(scene)[question.objects[0]]
        kept_shares.append(shown[kept].mean() * len(kept) / shown.sum())
        random_shares.append(len(kept) / NUM_PATCHES)
        gains.append(kept_shares[-1] - random_shares[-1])
    n = len(gains)
    mean = sum(gains) / n
    stderr = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (n - 1) / n)
    facts = (
        f"budget {BUDGET}, n={n}: kept {sum(kept_shares) / n:.3f} of the named object's tokens, "
        f"random would keep {sum(random_shares) / n:.3f} (difference {mean:.3f} +- {stderr:.3f})"
    )
    record_property("kept_on_object", facts)
    print(facts)
    assert n >= NUM_SCENES // 2
    assert mean > 3 * stderr, facts
