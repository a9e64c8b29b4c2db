"""The library's processor of a model, without its video part.

Video processors need torchvision, which this service does not; no video ever comes in.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

_VIDEO_PART = "video_processor"


def load_processor(source: str, config: PreTrainedConfig, **options: Any) -> Any:
    """Tokenizer, image processor and chat template of a model folder or hub id."""
    declared = PROCESSOR_MAPPING.get(type(config), None)
    if declared is None or _VIDEO_PART not in declared.get_attributes():
        return AutoProcessor.from_pretrained(source, **options)
    return _without_video(declared).from_pretrained(source, **options)


def _without_video(declared: Any) -> Any:
    parts = [part for part in declared.get_attributes() if part != _VIDEO_PART]
    return type(declared.__name__, (declared,), {"get_attributes": staticmethod(lambda: parts)})
