"""The LLaVA that is trained here: its configuration, its start values and its image side."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from allrounder.demo.scenes import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE

WIDTH = 128
NUM_LAYERS = 16
NUM_HEADS = 4
MLP_WIDTH = 352
VISION_WIDTH = 128
VISION_LAYERS = 4
MAX_POSITIONS = 2048
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
# Word vectors start this large so that a patch can be told from them by a plain dot product.
WORD_STD = 0.25


def build_model(
    *, vocab_size: int, pad_id: int, bos_id: int, eos_id: int, image_id: int
) -> LlavaForConditionalGeneration:
    """A fresh model with random vision weights and a decoder that starts near the identity."""
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        projection_dim=VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=NUM_HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    _start_near_identity(model)
    return model


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """What the image processor makes of RGB arrays [n, 224, 224, 3]."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float().div_(255.0)
    return pixels.sub_(PIXEL_MEAN).div_(PIXEL_STD)


def encode_images(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Projected visual tokens [n, 196, width]."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    projected: Tensor = model.model.multi_modal_projector(states[-1][:, 1:])
    return projected


@torch.no_grad()
def _start_near_identity(model: LlavaForConditionalGeneration) -> None:
    """Mimetic start: attention begins as "look at what resembles me and copy it".

    Paper: https://arxiv.org/abs/2305.09828
    """
    decoder = model.model.language_model
    decoder.embed_tokens.weight.normal_(0, WORD_STD)
    eye = torch.eye(WIDTH)
    for layer in decoder.layers:
        attention = layer.self_attn
        for weight, share in (
            (attention.q_proj.weight, 0.8),
            (attention.k_proj.weight, 0.8),
            (attention.v_proj.weight, 0.5),
            (attention.o_proj.weight, 0.5),
        ):
            weight.copy_(eye * share + torch.randn(WIDTH, WIDTH) * 0.02)
