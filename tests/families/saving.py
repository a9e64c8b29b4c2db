"""What the builders of tiny random models share: a decoder's shape, and writing a user's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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


def save(folder: Path, kind: Any, config: Any, processor: Any, *, seed: int = 0) -> Path:
    """Write a random `kind` of this configuration, and its processor, into `folder`."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
