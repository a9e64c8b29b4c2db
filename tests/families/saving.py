"""What the builders of tiny random models share: a decoder's shape, and writing a user's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ProcessorMixin
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_processing_utils import VideoProcessorMixin

NUM_LAYERS = 6
INITIALIZER_RANGE = 0.3
"""Large enough that attention is not uniform and an answer depends on the image."""

PIXEL_STATISTICS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def decoder_shape(num_specials: int, **fields: Any) -> dict[str, Any]:
    """A byte-level decoder's configuration; the special tokens' ids come first."""
    return {
        "vocab_size": num_specials + 256,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": INITIALIZER_RANGE,
        **fields,
    }


def no_video() -> Any:
    """In the place of a video processor, all of which need torchvision."""
    return VideoProcessorMixin(num_frames=None, fps=None)


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Lets transformers build processors that also know videos."""
    check = ProcessorMixin.check_argument_for_proper_class
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoVideoProcessor, "from_pretrained", lambda *_, **__: no_video())
        patch.setattr(
            ProcessorMixin,
            "check_argument_for_proper_class",
            lambda self, name, part: name == "video_processor" or check(self, name, part),
        )
        yield


def save(folder: Path, kind: Any, config: Any, processor: Any, *, seed: int = 0) -> Path:
    """Write a random `kind` of this configuration, and its processor, into `folder`.

    It never says its own image token, which the reference could not read back as text.
    """
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[config.image_token_id] = 0
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if hasattr(processor, "video_processor"):
        _name_video_processor(
            folder, type(processor).__name__.replace("Processor", "VideoProcessor")
        )
    return folder


def _name_video_processor(folder: Path, name: str) -> None:
    """As in a published folder, which names the video processor that the library has."""
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["video_processor"] = {"video_processor_type": name}
    path.write_text(json.dumps(settings, indent=2))
