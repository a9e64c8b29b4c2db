"""The two sides of a comparison over the same weights: our runner, and transformers' `generate`.

Both get visual features that were computed before: the encoder is timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from allrounder.bench.workload import Workload
from allrounder.core import ChatRequest, ChatResult, ImageInput, Plan
from allrounder.engine.execution.batch import prompt_rows
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.offline import drive
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import ImageFeatures
from allrounder.models.transformers import TransformersAdapter

Features = Mapping[str, ImageFeatures]
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedRun:
    """Seconds of one batch: planning in `total` only; for the library `total` only."""

    total: float
    prefill: float = 0.0
    decode: float = 0.0
    results: tuple[ChatResult, ...] = ()


class _PrecomputedFeatures:
    """An adapter whose encoder is a look-up, and whose answers end only at their full length."""

    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, adapter: Adapter, features: Features) -> None:
        self._adapter = adapter
        self._features = features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def encode(self, images: Sequence[ImageInput]) -> list[ImageFeatures]:
        return [self._features[image.digest] for image in images]


class EngineSide:
    """Our runner, driven without a server."""

    def __init__(self, adapter: Adapter, features: Features) -> None:
        at_hand = cast("Adapter", _PrecomputedFeatures(adapter, features))
        self.runner = ModelRunner(at_hand, kv_bytes_limit=_NO_LIMIT)

    def answer(self, requests: Sequence[ChatRequest]) -> TimedRun:
        ran = drive(self.runner, requests)
        return TimedRun(
            total=ran.total, prefill=ran.prefill, decode=ran.decode, results=ran.results
        )


class LibrarySide:
    """transformers' own `generate` on one batch of equally long prompts, without padding.

    It is given the embedded prompt, visual features in place; making that is not timed.
    """

    def __init__(
        self, adapter: TransformersAdapter, features: Features, workload: Workload
    ) -> None:
        self._model: Any = adapter.plain_twin()
        layout = adapter.layout(workload.images[0])
        prompt = adapter.prompt(workload.question, [layout])
        rows = prompt_rows(
            adapter,
            prompt,
            adapter.positions(prompt, [layout]),
            features[workload.images[0].digest],
            Plan.dense(num_layers=adapter.geometry.num_layers, num_visual=layout.num_visual),
        )
        self._embedded_1SD = rows.hidden_SD[None]

    @torch.inference_mode()
    def token_ids(self, num_requests: int, num_tokens: int) -> list[list[int]]:
        embedded_BSD = self._embedded_1SD.expand(num_requests, -1, -1).contiguous()
        mask = torch.ones(embedded_BSD.shape[:2], dtype=torch.long, device=embedded_BSD.device)
        ids: list[list[int]] = self._model.generate(
            inputs_embeds=embedded_BSD,
            attention_mask=mask,
            max_new_tokens=num_tokens,
            do_sample=False,
        ).tolist()
        return ids

    def answer(self, num_requests: int, num_tokens: int) -> TimedRun:
        started = time.perf_counter()
        self.token_ids(num_requests, num_tokens)
        return TimedRun(total=time.perf_counter() - started)


def median_run(repeats: int, run: Callable[[], TimedRun]) -> TimedRun:
    """The sample of median total among some runs: short runs vary most."""
    return sorted((run() for _ in range(repeats)), key=lambda sample: sample.total)[repeats // 2]


def encode_all(adapter: Adapter, images: Sequence[ImageInput]) -> dict[str, ImageFeatures]:
    return {image.digest: adapter.encode([image])[0] for image in images}


def encode_seconds(adapter: Adapter, image: ImageInput) -> float:
    """One image through the vision tower; waits for the device."""
    started = time.perf_counter()
    adapter.encode([image])[0].tokens_VD[0, 0].item()
    return time.perf_counter() - started
