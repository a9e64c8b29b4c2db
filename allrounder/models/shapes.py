"""Named shapes of random weights, for benchmarks and tests: no download, and no answer ever ends.

The real models' sizes; tokenizers and templates of their families' form (`made_processors.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
)

from allrounder.errors import ModelUnsupported
from allrounder.models.made_processors import (
    LLAVA_SPECIALS,
    QWEN_SPECIALS,
    ImageTextProcessor,
    llava_processor,
    qwen_processor,
)

PREFIX = "random:"
_SEED = 0


class Shape(Protocol):
    """What makes a random model: its configuration, and a processor that fits it."""

    def config(self) -> PreTrainedConfig: ...

    def processor(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class LlavaShape:
    """A CLIP tower over square images, a projector, a Llama decoder."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    vocab_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    side: int = 336
    patch: int = 14
    max_positions: int = 4096

    def config(self) -> LlavaConfig:
        vision = CLIPVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=4 * self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=self.side,
            patch_size=self.patch,
        )
        text = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=1e-5,
            bos_token_id=LLAVA_SPECIALS.index("<s>"),
            eos_token_id=None,
            pad_token_id=LLAVA_SPECIALS.index("<pad>"),
        )
        return LlavaConfig(
            vision_config=vision.to_dict(),
            text_config=text.to_dict(),
            image_token_id=LLAVA_SPECIALS.index("<image>"),
            vision_feature_layer=-2,
            image_seq_length=(self.side // self.patch) ** 2,
        )

    def processor(self) -> LlavaProcessor:
        return llava_processor(vocab_size=self.vocab_size, side=self.side, patch=self.patch)


@dataclass(frozen=True, kw_only=True)
class QwenShape:
    """Qwen2.5-VL (arXiv 2502.13923): native resolution, merged patches, three rotary axes."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    vocab_size: int
    mrope_section: tuple[int, int, int]
    vision_width: int
    vision_mlp_width: int
    vision_layers: int
    vision_heads: int
    full_attention_layers: tuple[int, ...]
    max_positions: int = 128_000

    def config(self) -> Qwen2_5_VLConfig:
        text = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": list(self.mrope_section),
            },
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": QWEN_SPECIALS.index("<|endoftext|>"),
        }
        vision = {
            "depth": self.vision_layers,
            "hidden_size": self.vision_width,
            "intermediate_size": self.vision_mlp_width,
            "num_heads": self.vision_heads,
            "out_hidden_size": self.width,
            "fullatt_block_indexes": list(self.full_attention_layers),
            "tokens_per_second": 2,
        }
        names = ("vision_start", "vision_end", "image_pad", "video_pad")
        start, end, image, video = (QWEN_SPECIALS.index(f"<|{name}|>") for name in names)
        return Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            vision_start_token_id=start,
            vision_end_token_id=end,
            image_token_id=image,
            video_token_id=video,
        )

    def processor(self) -> ImageTextProcessor:
        return qwen_processor(vocab_size=self.vocab_size)


SHAPES: dict[str, Shape] = {
    "llava-1.5-7b": LlavaShape(
        width=4096,
        num_layers=32,
        num_heads=32,
        mlp_width=11008,
        vocab_size=32064,
        vision_width=1024,
        vision_layers=24,
        vision_heads=16,
    ),
    "qwen2.5-vl-7b": QwenShape(
        width=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        mlp_width=18944,
        vocab_size=152_064,
        mrope_section=(16, 24, 24),
        vision_width=1280,
        vision_mlp_width=3420,
        vision_layers=32,
        vision_heads=16,
        full_attention_layers=(7, 15, 23, 31),
    ),
    # The tower costs the same share of dense prefill as that of llava-1.5-7b.
    "llava-512x32": LlavaShape(
        width=512,
        num_layers=32,
        num_heads=8,
        mlp_width=1376,
        vocab_size=32064,
        vision_width=256,
        vision_layers=8,
        vision_heads=4,
    ),
    "tiny": LlavaShape(
        width=32,
        num_layers=8,
        num_heads=4,
        mlp_width=96,
        vocab_size=320,
        vision_width=32,
        vision_layers=2,
        vision_heads=2,
        side=112,
        max_positions=512,
    ),
}


def shape_named(name: str) -> Shape:
    """Raises ModelUnsupported naming the known shapes."""
    if name not in SHAPES:
        known = ", ".join(PREFIX + each for each in SHAPES)
        raise ModelUnsupported(f"no random shape {name!r}; known: {known}")
    return SHAPES[name]


def build(
    shape: Shape, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Random weights, made where and as they will be used, and a processor for them.

    The same shape, device type and dtype give the same weights. Touches no global random state.
    """
    places = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=places), device:
        torch.manual_seed(_SEED)
        model = AutoModelForImageTextToText.from_config(shape.config(), dtype=dtype)
    model.generation_config.eos_token_id = None
    return model, shape.processor()
