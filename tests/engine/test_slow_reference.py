"""Strategies that select on the way, against plain loops over transformers' layers in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allrounder.core import ChatRequest
from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import recorded
from tests.families.slow import Act, Rows, SlowDecoder
from tests.tiny import NUM_VISUAL, chat_request

pytestmark = pytest.mark.timeout(120)
NUM_LAYERS, TOKENS = 6, 16


@pytest.fixture(scope="module")
def slow(llava_folder: Path) -> SlowDecoder:
    return SlowDecoder(llava_folder)


def _request(strategy: str, seed: int, **options: Any) -> ChatRequest:
    return chat_request(seed, form=Counts(tokens=TOKENS), strategy=strategy, options=options)


def _agrees(
    slow: SlowDecoder,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    request: ChatRequest,
    act: Act,
) -> Rows:
    sequence, ours = recorded(runner, adapter, request)
    theirs, rows = slow.run(adapter, request, sequence.token_ids, act)
    assert {s.layer_idx: list(s.kept or ()) for s in sequence.plan.selections} == rows.kept
    torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)
    return rows


def _best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(sorted(scores, key=lambda idx: (-scores[idx], idx))[:count])


def _looked_at(rows: Rows, attention: Tensor, sources: list[int]) -> dict[int, float]:
    """Attention to each visual token that is left, mean over heads and source rows."""
    scores = {}
    for idx in rows.left():
        column = attention[:, [rows.at(row) for row in sources], rows.at(rows.visual[idx])]
        scores[idx] = math.fsum(column.flatten().tolist()) / column.numel()
    return scores


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_pdrop_ranks_by_the_layer_about_to_run(
    slow: SlowDecoder,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    seed: int,
    renumber: bool,
) -> None:
    counts = {1: 40, 3: 25, 4: TOKENS}

    def act(layer_idx: int, rows: Rows) -> None:
        if layer_idx in counts:
            scores = _looked_at(rows, rows.attend(layer_idx), [rows.prompt - 1])
            rows.keep(layer_idx, _best(scores, counts[layer_idx]), renumber=renumber)

    _agrees(slow, runner, adapter, _request("pdrop", seed, renumber=renumber), act)


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("layer", [0, 2, 5])
def test_llavolta_averages_runs_of_neighbours(
    slow: SlowDecoder,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    layer: int,
    renumber: bool,
) -> None:
    stride = NUM_VISUAL // TOKENS

    def act(layer_idx: int, rows: Rows) -> None:
        if layer_idx == layer:
            starts = range(0, NUM_VISUAL, stride)
            middles = [int(sum(range(start, start + stride)) / stride) for start in starts]
            merge = {
                middle: dict.fromkeys(range(start, start + stride), 1 / stride)
                for middle, start in zip(middles, starts, strict=True)
            }
            rows.keep(layer_idx, middles, merge=merge, renumber=renumber)

    _agrees(slow, runner, adapter, _request("llavolta", 1, layer=layer, renumber=renumber), act)


def _bits(rows: Rows, sources: list[int]) -> float:
    """Mutual information of text rows and visual tokens, summed over the heads."""
    assert rows.attention is not None
    total, size = 0.0, len(sources)
    places = [rows.at(row) for row in sources]
    columns = [rows.at(rows.visual[idx]) for idx in rows.left()]
    for head in rows.attention.tolist():
        for column in columns:
            joint = [head[place][column] / size for place in places]
            visual = sum(joint)
            for each in joint:
                total += each * math.log2(max(each / (visual / size + 1e-6), 1e-6))
    return total


def _curve(first: int, steepness: float, recycle: bool) -> list[int]:
    """Tokens that leave each layer, from a fine search over the scale."""
    center = 14.9 * NUM_LAYERS / 32 + steepness
    ratios = [0.75 / (1 + math.exp(steepness * (layer_idx - center))) for layer_idx in range(1, 6)]

    def simulate(scale: float) -> list[int]:
        counts = [first]
        for ratio in ratios:
            kept = min(math.ceil((first - 1) * min(1, scale * ratio)), first)
            counts.append(kept + (_clusters(counts[-1] - kept) if recycle else 0))
        return counts

    target = NUM_LAYERS * TOKENS
    if abs(sum(simulate(1.0)) - target) <= 1:
        return simulate(1.0)
    low, high, tried = 0.0, 20.0, [simulate(1.0)]
    for _ in range(200):
        middle = (low + high) / 2
        tried.append(simulate(middle))
        if sum(tried[-1]) == target:
            break
        low, high = (middle, high) if sum(tried[-1]) < target else (low, middle)
    return min(tried, key=lambda counts: abs(sum(counts) - target))


def _clusters(dropped: int) -> int:
    pool = int(0.3 * dropped) + 1
    return min(pool // 10 + 1, pool) if dropped else 0


def _recycled(
    rows: Rows, scores: dict[int, float], kept: list[int], count: int
) -> dict[int, dict[int, float]]:
    """Kept tokens as they are, and clusters of the best dropped ones by density peaks."""
    dropped = [idx for idx in scores if idx not in kept]
    pool = _best({idx: scores[idx] for idx in dropped}, int(0.3 * len(dropped)) + 1)
    state = {idx: rows.hidden[rows.at(rows.visual[idx])] for idx in pool}
    width = len(state[pool[0]])

    def apart(one: int, other: int) -> float:
        return math.sqrt(float((state[one] - state[other]).square().sum()) / width)

    density = {}
    for idx in pool:
        nearest = sorted(apart(idx, other) for other in pool)[:5]
        density[idx] = math.exp(-sum(each * each for each in nearest) / len(nearest))
    farthest = max(apart(one, other) for one in pool for other in pool)
    height = {
        idx: density[idx]
        * min((apart(idx, o) for o in pool if density[o] > density[idx]), default=farthest)
        for idx in pool
    }
    centres = sorted(pool, key=lambda idx: -height[idx])[:count]
    members: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for idx in pool:
        if idx not in centres:
            members[min(centres, key=lambda centre: apart(idx, centre))].append(idx)
    merge = {idx: {idx: 1.0} for idx in kept}
    return merge | {c: dict.fromkeys(own, 1 / len(own)) for c, own in members.items()}


@pytest.mark.parametrize("recycle", [False, True])
@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize(("seed", "k0", "gamma"), [(0, 0.4, 0.2), (1, 3.0, 5.0), (2, 3.0, 0.0)])
def test_autoprune_follows_the_curve_of_its_request(
    slow: SlowDecoder,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    seed: int,
    k0: float,
    gamma: float,
    renumber: bool,
    recycle: bool,
) -> None:
    counts: list[int] = []
    options = {"k0": k0, "gamma": gamma, "renumber": renumber, "recycle": recycle}
    request = _request("autoprune", seed, **options)
    with torch.inference_mode():
        facts = adapter.encode(request.images, with_facts=True)[0].facts
    assert facts is not None
    class_looks = facts.attention_HV.double().mean(0).tolist()

    def act(layer_idx: int, rows: Rows) -> None:
        if layer_idx == 0:
            return
        sources = list(range(max(rows.visual) + 1, rows.prompt))
        assert rows.attention is not None
        scores = _looked_at(rows, rows.attention, sources)
        if layer_idx == 1:
            weight = 0.3 * _bits(rows, sources) / len(sources)
            scores = {idx: class_looks[idx] + weight * score for idx, score in scores.items()}
            rows.keep(1, _best(scores, int(2.5 * TOKENS)), renumber=renumber)
            return
        if layer_idx == 2:
            steepness = max(k0 - gamma * _bits(rows, sources), 0.0)
            counts[:] = _curve(int(2.5 * TOKENS), steepness, recycle)
        count, arriving = counts[layer_idx - 1], len(rows.left())
        own = range(count, -1, -1) if recycle else [count]
        kept = next(n for n in own if not recycle or n + _clusters(arriving - n) == count)
        best = _best(scores, kept)
        merge = _recycled(rows, scores, best, count - kept) if kept < count else None
        rows.keep(layer_idx, sorted(merge or best), merge=merge, renumber=renumber)

    rows = _agrees(slow, runner, adapter, request, act)
    sizes = [len(kept) for kept in rows.kept.values()]
    assert all(before >= after for before, after in pairwise(sizes))
