"""The encode stage: each image once, in bounded batches, kept within bounds and apart by tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from allrounder.core import ImageInput
from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.protocols import CacheCounts
from allrounder.engine.vision import encoder
from allrounder.engine.vision.encoder import EncoderCache, ImageKey
from allrounder.models.families.family import ImageFeatures
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import begin
from tests.tiny import NUM_VISUAL, chat_request, noise_image


class _Watched:
    """An adapter's encoder that remembers what it was given."""

    def __init__(self, adapter: TransformersAdapter) -> None:
        self._encode = adapter.encode
        self.batches: list[list[str]] = []

    def __call__(
        self, images: Sequence[ImageInput], *, with_facts: bool = False
    ) -> list[ImageFeatures]:
        self.batches.append([image.digest for image in images])
        return self._encode(images, with_facts=with_facts)


@pytest.fixture
def watched(adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch) -> _Watched:
    watched = _Watched(adapter)
    monkeypatch.setattr(adapter, "encode", watched)
    return watched


def test_several_questions_about_one_image_encode_it_once(
    runner: ModelRunner, watched: _Watched
) -> None:
    image = noise_image(1)
    asked = [chat_request(seed, images=(image,)) for seed in range(4)]
    begin(runner, asked[:3])
    begin(runner, asked[3:])
    assert watched.batches == [[image.digest]]
    assert runner.encoder_cache() == CacheCounts(queries=4, hits=3)


def test_what_one_tenant_asked_about_is_not_there_for_another(
    runner: ModelRunner, watched: _Watched
) -> None:
    request = chat_request(1)
    begin(runner, [request])
    begin(runner, [replace(request, tenant="other")])
    assert len(watched.batches) == 2
    assert runner.encoder_cache().hits == 0


def test_the_answer_is_the_same_from_the_cache(runner: ModelRunner) -> None:
    first, again = (begin(runner, [chat_request(1)])[0] for _ in range(2))
    assert torch.equal(first.visual.tokens_VD, again.visual.tokens_VD)


def test_facts_of_the_tower_are_there_only_for_a_strategy_that_needs_them(
    runner: ModelRunner, watched: _Watched
) -> None:
    image = noise_image(1)
    plain = chat_request(1, images=(image,))
    asks = chat_request(2, images=(image,), form=Counts(tokens=9), strategy="visionzip")
    (without,) = begin(runner, [plain])
    (with_facts,) = begin(runner, [asks])
    assert without.visual.facts is None
    assert with_facts.visual.facts is not None
    assert len(watched.batches) == 2
    begin(runner, [plain, asks])
    assert len(watched.batches) == 2
    assert runner._encoder.cache.bytes_held == with_facts.visual.nbytes > without.visual.nbytes


def test_requests_that_begin_together_share_an_image_with_its_facts(
    runner: ModelRunner, watched: _Watched
) -> None:
    image = noise_image(1)
    asks = chat_request(2, images=(image,), form=Counts(tokens=9), strategy="visionzip")
    begin(runner, [chat_request(1, images=(image,)), asks])
    assert watched.batches == [[image.digest]]


def test_a_batch_is_bounded_by_visual_tokens_before_pruning(
    runner: ModelRunner, watched: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "MAX_ENCODED_TOKENS", 2 * NUM_VISUAL)
    begin(runner, [chat_request(seed) for seed in range(5)])
    assert [len(batch) for batch in watched.batches] == [2, 2, 1]


def test_without_room_nothing_is_kept(adapter: TransformersAdapter, watched: _Watched) -> None:
    runner = ModelRunner(adapter, encoder_cache_bytes=0)
    for _ in range(2):
        begin(runner, [chat_request(1)])
    assert len(watched.batches) == 2


def _key(name: str) -> ImageKey:
    return ImageKey(tenant="t", digest=name, fingerprint="f")


def _tokens(num_bytes: int) -> ImageFeatures:
    return ImageFeatures(tokens_VD=torch.zeros(1, num_bytes // 4))


def test_the_least_recently_used_goes_first_and_bytes_stay_bounded() -> None:
    cache = EncoderCache(max_bytes=100)
    for name in ("a", "b"):
        cache.keep(_key(name), _tokens(40))
    assert cache.find(_key("a")) is not None
    cache.keep(_key("c"), _tokens(40))
    assert cache.bytes_held == 80
    assert cache.find(_key("b")) is None
    assert cache.find(_key("a")) is not None
    cache.keep(_key("huge"), _tokens(400))
    assert cache.find(_key("huge")) is None
    assert cache.bytes_held == 80


def test_a_view_of_a_whole_batch_is_not_kept_alive_by_one_image() -> None:
    batch = torch.zeros(8, 16, 4)
    planes = torch.ones(8, 16, 4)
    own = ImageFeatures(tokens_VD=batch[2], planes=(planes[2],)).own()
    assert own.nbytes == 2 * 16 * 4 * 4
    assert own.tokens_VD.untyped_storage().nbytes() == own.tokens_VD.nbytes
    assert own.planes[0].untyped_storage().nbytes() == own.planes[0].nbytes
