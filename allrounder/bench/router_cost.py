"""What the meta-router costs at a real model's width, without the model: FLOPs, and time beside one
real decoder layer, taken times the depth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from allrounder.bench.rows import BenchRow, compared, counted
from allrounder.bench.sides import EngineSide, TimedRun
from allrounder.bench.workload import DENSE, Workload, make_workload
from allrounder.core import Plan
from allrounder.cost import prefill_flops
from allrounder.models.families.family import ImageFeatures
from allrounder.models.loading import random_adapter
from allrounder.models.shapes import LlavaShape
from allrounder.models.transformers import TransformersAdapter
from allrounder.router.network import MetaRouter, RouterConfig, router_flops

_NUM_LAYERS = 32
_VOCABULARY = 32064
_HEAD_SIZE = 128
_FEATURE_SCALE = 0.02


class RouterCost:
    """A random router, and one layer of LLaVA-1.5-7B's proportions at the same width."""

    def __init__(self, width: int, *, like: TransformersAdapter) -> None:
        self._adapter = random_adapter(
            _one_layer(width),
            name="one-layer",
            device=torch.device(like.device),
            dtype=getattr(torch, like.dtype),
        )
        self._workload: Workload = make_workload(self._adapter)
        num_visual = self._workload.shape.num_visual
        visual_VD = self._adapter.embed(torch.randint(0, 256, (num_visual,)).tolist())
        features = ImageFeatures(tokens_VD=visual_VD)
        self._side = EngineSide(
            self._adapter, {image.digest: features for image in self._workload.images}
        )
        self._config = RouterConfig.for_model(model_width=width, num_layers=_NUM_LAYERS)
        with torch.device(like.device):
            self._router = MetaRouter(self._config).eval()
            self._visual = torch.randn(1, num_visual, width) * _FEATURE_SCALE
            self._question = (
                torch.randn(1, self._workload.shape.num_question, width) * _FEATURE_SCALE
            )

    def settings(self) -> dict[str, Callable[[], TimedRun]]:
        return {"router": self._time_router, "layer": self._time_layer}

    def rows(self, router: Sequence[TimedRun], layer: Sequence[TimedRun]) -> list[BenchRow]:
        shape = self._workload.shape
        geometry = replace(self._adapter.geometry, num_layers=_NUM_LAYERS, vocab_size=_VOCABULARY)
        dense = Plan.dense(num_layers=_NUM_LAYERS, num_visual=shape.num_visual)
        spent = router_flops(
            self._config, num_visual=shape.num_visual, num_question=shape.num_question
        )
        label = f"router/{geometry.width}"
        whole = prefill_flops(geometry, shape, dense)
        return [
            counted(f"{label}/flops", spent / 1e9, "GFLOP", whole / 1e9),
            compared(
                f"{label}/time",
                [1000 * sample.total for sample in router],
                [1000 * _NUM_LAYERS * sample.prefill for sample in layer],
                f"ms, beside one layer x {_NUM_LAYERS}",
            ),
        ]

    @torch.inference_mode()
    def _time_router(self) -> TimedRun:
        started = time.perf_counter()
        tokens, layers = self._router(self._visual, self._question)
        (tokens.sum() + layers.sum()).item()
        return TimedRun(total=time.perf_counter() - started)

    def _time_layer(self) -> TimedRun:
        return self._side.answer(self._workload.requests([DENSE], image_of=[0], max_tokens=1))


def _one_layer(width: int) -> LlavaShape:
    return LlavaShape(
        width=width,
        num_layers=1,
        num_heads=max(1, width // _HEAD_SIZE),
        mlp_width=11008 * width // 4096,
        vocab_size=320,
        vision_width=32,
        vision_layers=2,
        vision_heads=2,
    )
