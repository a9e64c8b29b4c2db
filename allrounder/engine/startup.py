"""From settings to a runner: the model, its router, and their limits."""

from __future__ import annotations

import torch

from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.planning.planner import CalibrationUse
from allrounder.models.adapter import Adapter
from allrounder.models.loading import load_adapter
from allrounder.router.weights import LoadedRouter, load_router
from allrounder.settings import EngineSettings


def find_router(settings: EngineSettings, adapter: Adapter) -> LoadedRouter | None:
    """The router that lies in the model's folder, if any. Raises RouterMismatch."""
    folder = settings.router_dir / adapter.name
    if not folder.is_dir():
        return None
    return load_router(
        folder,
        fingerprint=adapter.fingerprint,
        geometry=adapter.geometry,
        device=adapter.device,
    )


def load_runner(settings: EngineSettings) -> ModelRunner:
    """The model and its router as the settings name them. Raises StartupError."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    adapter = load_adapter(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        allow_hub=settings.allow_hub,
    )
    return ModelRunner(
        adapter,
        find_router(settings, adapter),
        kv_bytes_limit=settings.kv_bytes_limit,
        encoder_cache_bytes=settings.encoder_cache_bytes,
        calibration_use=CalibrationUse(
            quality_margin=settings.quality_margin, split_by=settings.split_by
        ),
    )
