"""Examines an installation: versions, machine, model, router, and a request through every stage.

Each finding is ok, a warning or a failure; whatever a part raises is a finding, not an end.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import torch

from allrounder.core import (
    BudgetRequest,
    ChatRequest,
    ImageInput,
    SamplingParams,
    Stage,
)
from allrounder.core.budget import FlopsShare
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.offline import Drive, drive
from allrounder.engine.startup import find_router
from allrounder.errors import AllrounderError, RouterMismatch
from allrounder.measure import environment
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from allrounder.router.weights import LoadedRouter
from allrounder.settings import EngineSettings

_SIDE = 64
_NUM_TOKENS = 4
_PRUNED_SHARE = 0.5
_BASELINE_INSTRUCTIONS = ("DEFAULT", "NO AVX")


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding; `facts` are for machines."""

    name: str
    status: Status
    detail: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def examine(settings: EngineSettings) -> Iterator[Check]:
    """Findings as they are made. After a model that does not load there is nothing to examine."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    yield _versions()
    yield _processor()
    try:
        adapter = load_adapter(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            allow_hub=settings.allow_hub,
        )
    except Exception as err:
        yield _failed("model", err)
        return
    yield _model(adapter)
    router, finding = _router(settings, adapter)
    yield finding
    yield _memory(settings, adapter)
    try:
        # Nothing is kept between the two requests, so that each is encoded.
        runner = ModelRunner(
            adapter, router, kv_bytes_limit=settings.kv_bytes_limit, encoder_cache_bytes=0
        )
        yield _strategies(runner)
    except Exception as err:
        yield _failed("runner", err)
        return
    smallest = runner.capabilities().smallest_budget
    for name, share in (("dense", 1.0), ("pruned", max(_PRUNED_SHARE, min(2 * smallest, 1.0)))):
        yield _stages(runner, name, share)


def _versions() -> Check:
    facts = {**environment.versions(), "torchvision": environment.is_installed("torchvision")}
    shown = ", ".join(f"{name} {value}" for name, value in environment.versions().items())
    images = "present" if facts["torchvision"] else "absent (Pillow resizes the images)"
    return _ok("versions", f"{shown}; torchvision {images}", facts)


def _processor() -> Check:
    facts = environment.processor()
    shown = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['instruction_set']}, GPU: {facts['gpu'] or 'none'}"
    )
    if facts["threads"] > facts["cores"]:
        return _warning("processor", f"{shown}; more threads than cores slow each other", facts)
    if facts["instruction_set"] in _BASELINE_INSTRUCTIONS and facts["gpu"] is None:
        return _warning("processor", f"{shown}; no vector instructions: this will be slow", facts)
    return _ok("processor", shown, facts)


def _model(adapter: TransformersAdapter) -> Check:
    geometry = asdict(adapter.geometry)
    geometry["protected_layers"] = sorted(adapter.geometry.protected_layers)
    facts = {
        "model": adapter.name,
        "family": adapter.family,
        "fingerprint": adapter.fingerprint,
        "device": adapter.device,
        "dtype": adapter.dtype,
        "attention": "sdpa",
        "geometry": geometry,
        "visual_tokens": adapter.fixed_visual,
    }
    shown = (
        f"{adapter.name} ({adapter.family}, {adapter.fingerprint}) on {adapter.device} in "
        f"{adapter.dtype}, attention sdpa; {geometry['num_layers']} layers x {geometry['width']}, "
        f"{adapter.fixed_visual or 'varying'} visual tokens"
    )
    return _ok("model", shown, facts)


def _router(
    settings: EngineSettings, adapter: TransformersAdapter
) -> tuple[LoadedRouter | None, Check]:
    folder = settings.router_dir / adapter.name
    facts: dict[str, Any] = {"folder": str(folder), "router": None}
    try:
        router = find_router(settings, adapter)
    except RouterMismatch as err:
        return None, _said("router", Status.FAILED, f"does not fit: {err.message}", facts)
    if router is None:
        return None, _ok("router", f"none in {folder}: training-free strategies only", facts)
    facts["router"] = router.identity
    if router.manifest.calibration is None:
        return router, _warning("router", f"{router.identity} fits but is not calibrated", facts)
    return router, _ok("router", f"{router.identity} fits", facts)


def _memory(settings: EngineSettings, adapter: TransformersAdapter) -> Check:
    total = environment.device_bytes(adapter.device)
    facts = {
        "weight_bytes": adapter.weight_bytes,
        "resident_bytes": environment.resident_bytes(),
        "kv_bytes_limit": settings.kv_bytes_limit,
        "device_bytes": total,
    }
    shown = (
        f"weights {_mib(adapter.weight_bytes)}, process {_mib(facts['resident_bytes'])}, "
        f"limit of keys and values {_mib(settings.kv_bytes_limit)}, device {_mib(total)}"
    )
    if adapter.weight_bytes + settings.kv_bytes_limit > total:
        return _warning("memory", f"{shown}; lower kv_bytes_limit: this cannot all fit", facts)
    return _ok("memory", shown, facts)


def _strategies(runner: ModelRunner) -> Check:
    found = runner.capabilities()
    names = [strategy.name for strategy in found.strategies]
    facts = {
        "strategies": names,
        "default_strategy": found.default_strategy,
        "smallest_budget": found.smallest_budget,
    }
    shown = (
        f"{', '.join(names)}; default {found.default_strategy}, "
        f"smallest budget {found.smallest_budget:.3f}"
    )
    return _ok("strategies", shown, facts)


def _stages(runner: ModelRunner, name: str, share: float) -> Check:
    try:
        ran = drive(runner, [_request(name, share)])
    except Exception as err:
        return _failed(name, err)
    (result,) = ran.results
    stage_ms = _stage_ms(ran)
    facts = {
        "budget": share,
        "visual_tokens": {"total": result.plan.num_visual, "kept": result.plan.num_kept},
        "layers": {"total": len(result.plan.runs), "run": result.plan.num_layers_run},
        "prefill_ratio": result.cost.prefill_ratio,
        "stage_ms": stage_ms,
    }
    times = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in stage_ms.items())
    shown = (
        f"{result.plan.num_kept} of {result.plan.num_visual} visual tokens, "
        f"{result.plan.num_layers_run} of {len(result.plan.runs)} layers, "
        f"{result.cost.prefill_ratio:.3f} of prefill; {times}"
    )
    if result.cost.prefill_ratio > share:
        return _said(name, Status.FAILED, f"{shown}; spent more than its {share:g}", facts)
    if runner.kv_bytes_held():
        return _said(name, Status.FAILED, f"{shown}; keys and values were not given back", facts)
    return _ok(name, shown, facts)


def _stage_ms(ran: Drive) -> dict[str, float]:
    (result,) = ran.results
    timing = result.timing
    seconds = {
        "prepare": ran.prepare,
        Stage.ENCODE.value: timing.encode,
        Stage.PLAN.value: timing.plan,
        Stage.PREFILL.value: timing.prefill,
        Stage.DECODE.value: timing.decode,
    }
    return {stage: round(1000 * value, 3) for stage, value in seconds.items()}


def _request(name: str, share: float) -> ChatRequest:
    pixels = bytes([96, 128, 160]) * (_SIDE * _SIDE)
    return ChatRequest(
        id=f"doctor-{name}",
        images=(
            ImageInput(
                width=_SIDE, height=_SIDE, rgb=pixels, digest=hashlib.sha256(pixels).hexdigest()
            ),
        ),
        question="What is there?",
        budget=BudgetRequest(form=FlopsShare(share=share), requested=share),
        sampling=SamplingParams(max_tokens=_NUM_TOKENS),
        arrival=time.monotonic(),
    )


def _said(name: str, status: Status, detail: str, facts: Mapping[str, Any]) -> Check:
    return Check(name=name, status=status, detail=detail, facts=facts)


def _ok(name: str, detail: str, facts: Mapping[str, Any]) -> Check:
    return _said(name, Status.OK, detail, facts)


def _warning(name: str, detail: str, facts: Mapping[str, Any]) -> Check:
    return _said(name, Status.WARNING, detail, facts)


def _failed(name: str, err: Exception) -> Check:
    known = isinstance(err, AllrounderError)
    return _said(name, Status.FAILED, str(err) if known else f"{type(err).__name__}: {err}", {})


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
