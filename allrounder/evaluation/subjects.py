"""The model under test, once with each router: how it answers, and how it is timed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from allrounder.core import ModelGeometry, StrategyInfo
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.protocols import Runner
from allrounder.engine.startup import find_router
from allrounder.errors import InvalidField
from allrounder.models.adapter import Adapter
from allrounder.models.loading import load_adapter
from allrounder.pruning import known_strategies, make_strategy
from allrounder.pruning.strategy import Context
from allrounder.router.weights import LoadedRouter, load_router
from allrounder.settings import EngineSettings


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model with one router.

    Attributes:
        quality: encodes an image once for all questions about it.
        timed: encodes it anew for each, as a first question is served.
        has_logits: whether answers can be teacher-forced.
        router_key: all that decides what the router and its calibration do.
    """

    quality: Runner
    timed: Runner
    has_logits: bool = False
    router_key: str | None = None

    @property
    def num_visual(self) -> int | None:
        return self.quality.capabilities().visual_tokens


# By the router's name; None is the one in the model's own folder, if any.
Subjects = Mapping[str | None, Subject]


def load_subjects(settings: EngineSettings, routers: Mapping[str, Path]) -> Subjects:
    """One adapter, shared by all. Raises StartupError."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    adapter = load_adapter(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        allow_hub=settings.allow_hub,
    )
    subjects: dict[str | None, Subject] = {
        None: _subject(settings, adapter, find_router(settings, adapter))
    }
    for name, folder in routers.items():
        router = load_router(
            folder,
            fingerprint=adapter.fingerprint,
            geometry=adapter.geometry,
            device=adapter.device,
        )
        subjects[name] = _subject(settings, adapter, router)
    return subjects


def reads_router(strategy: str, geometry: ModelGeometry) -> bool:
    """Whether the router or its calibration has a part in what a strategy does."""
    return any(_is_refused_without_router(part, geometry) for part in strategy.split("+"))


def level_of(strategy: str, infos: Iterable[StrategyInfo]) -> str:
    """What a strategy prunes: token, layer, joint or nothing. Raises InvalidField if unknown."""
    known = {info.name: info for info in infos}
    parts = strategy.split("+")
    for part in parts:
        if part not in known:
            raise InvalidField(
                f"unknown strategy {part!r}; known: {', '.join(known)}", param="strategies"
            )
    if len(parts) > 1:
        return "joint"
    info = known[strategy]
    levels = {(True, True): "joint", (True, False): "token", (False, True): "layer"}
    return levels.get((info.prunes_tokens, info.prunes_layers), "nothing")


def check_knobs(strategy: str, options: Mapping[str, object]) -> None:
    """Raises InvalidField where a strategy of the registry has no such knob, or not so set."""
    if all(part in known_strategies() for part in strategy.split("+")):
        make_strategy(strategy, options)


def _is_refused_without_router(name: str, geometry: ModelGeometry) -> bool:
    kind = known_strategies().get(name)
    if kind is None:
        return False
    try:
        kind().check(Context(geometry=geometry))
    except InvalidField:
        return True
    return kind.needs_router


def _subject(settings: EngineSettings, adapter: Adapter, router: LoadedRouter | None) -> Subject:
    def runner(cache_bytes: int) -> ModelRunner:
        return ModelRunner(
            adapter,
            router,
            kv_bytes_limit=settings.kv_bytes_limit,
            encoder_cache_bytes=cache_bytes,
        )

    return Subject(
        quality=runner(settings.encoder_cache_bytes),
        timed=runner(0),
        has_logits=True,
        router_key=_router_key(router),
    )


def _router_key(router: LoadedRouter | None) -> str | None:
    """Weights are in its identity; its calibration and all else are in the manifest."""
    if router is None:
        return None
    manifest = hashlib.sha256(router.manifest.model_dump_json().encode()).hexdigest()
    return f"{router.identity}/{manifest[:8]}"
