"""For every family: rows that merge and rows that are ranked ahead, against slow float64 layers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.errors import InvalidField
from allrounder.models.transformers import TransformersAdapter
from allrounder.pruning.llavolta import windows
from tests.engine.driving import recorded
from tests.families.cases import FamilyCase
from tests.families.slow import Rows, SlowDecoder
from tests.tiny import chat_request, noise_image

pytestmark = pytest.mark.timeout(120)
TOKENS = 5


@pytest.fixture(scope="session")
def slow(folder: Path) -> SlowDecoder:
    return SlowDecoder(folder)


def _pools(rows: Rows) -> None:
    bounds = windows((len(rows.visual),), TOKENS)
    merge = {
        (start + stop - 1) // 2: dict.fromkeys(range(start, stop), 1 / (stop - start))
        for start, stop in pairwise(bounds)
    }
    rows.keep(-1, sorted(merge), merge=merge)


def _ranks(rows: Rows, layer_idx: int, count: int) -> None:
    attention = rows.attend(layer_idx)[:, rows.at(rows.prompt - 1)].mean(0)
    scores = {idx: float(attention[rows.at(rows.visual[idx])]) for idx in rows.left()}
    rows.keep(layer_idx, sorted(sorted(scores, key=lambda idx: (-scores[idx], idx))[:count]))


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("strategy", ["llavolta", "pdrop"])
def test_what_goes_on_is_what_slow_layers_say(
    case: FamilyCase,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    slow: SlowDecoder,
    strategy: str,
    layer: int,
) -> None:
    """Layers of several positions, DeepStack planes and normed heads among them."""
    width, height = case.sizes[layer % len(case.sizes)]
    request = chat_request(
        layer,
        images=(noise_image(layer, width=width, height=height),),
        form=Counts(tokens=TOKENS),
        strategy=strategy,
        options={"layer": layer} if strategy == "llavolta" else {"stages": 1 + layer},
    )
    sequence, ours = recorded(runner, adapter, request)
    counts = dict(sequence.plan.points)

    def act(layer_idx: int, rows: Rows) -> None:
        if layer_idx in counts and strategy == "llavolta":
            _pools(rows)
        elif layer_idx in counts:
            _ranks(rows, layer_idx, counts[layer_idx])

    theirs, _ = slow.run(adapter, request, sequence.token_ids, act)
    assert sequence.plan.num_kept == TOKENS
    torch.testing.assert_close(ours.double(), theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("strategy", ["pdrop", "llavolta", "autoprune"])
def test_rows_are_numbered_anew_on_one_axis_and_refused_on_several(
    runner: ModelRunner, adapter: TransformersAdapter, strategy: str
) -> None:
    request = chat_request(form=Counts(tokens=4), strategy=strategy, options={"renumber": True})
    if adapter.position_axes == 1:
        runner.prepare(request)
        return
    with pytest.raises(InvalidField) as caught:
        runner.prepare(request)
    assert caught.value.param == "budget.options.renumber"
