"""A tiny random LLaVA, saved as a user's folder would be, and requests to drive it with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from allrounder.core import BudgetRequest, ChatRequest, ImageInput, SamplingParams
from allrounder.core.budget import Budget, FlopsShare

SPECIALS = ("<pad>", "<s>", "</s>", "<image>")
SIDE, PATCH = 112, 14
NUM_VISUAL = (SIDE // PATCH) ** 2
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% endif %}{% endfor %}\n"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def tiny_config(
    *, num_layers: int = 6, num_kv_heads: int = 2, seed_width: int = 32, select: str = "default"
) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=len(SPECIALS) + 256,
        hidden_size=seed_width,
        intermediate_size=3 * seed_width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=3,
        vision_feature_layer=-1,
        vision_feature_select_strategy=select,
        image_seq_length=NUM_VISUAL,
    )


def tiny_llava_folder(
    folder: Path, *, seed: int = 0, select: str = "default", **shape: int
) -> Path:
    """Write a random LLaVA with processor and chat template into `folder`."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(tiny_config(select=select, **shape)).eval()
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    _processor(select).save_pretrained(folder)
    return folder


def reference_model(folder: Path) -> LlavaForConditionalGeneration:
    """The same folder through plain transformers."""
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def noise_image(seed: int, *, width: int = 40, height: int = 30) -> ImageInput:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8).tobytes()
    return ImageInput(width=width, height=height, rgb=rgb, digest=hashlib.sha256(rgb).hexdigest())


def chat_request(
    seed: int = 0,
    *,
    form: Budget | None = None,
    strategy: str | None = None,
    options: dict[str, Any] | None = None,
    num_images: int = 1,
    **fields: Any,
) -> ChatRequest:
    """A request with `seed`'s noise image and question; budget 1 unless `form` says else."""
    form = form or FlopsShare(share=1.0)
    sampling = fields.pop("sampling", SamplingParams(max_tokens=8))
    request = ChatRequest(
        id=fields.pop("id", f"request-{seed}"),
        images=tuple(noise_image(100 * seed + idx) for idx in range(num_images)),
        question=f"What is {seed}?",
        budget=BudgetRequest(form=form, requested=None, strategy=strategy, options=options or {}),
        sampling=sampling,
    )
    return replace(request, **fields)


def byte_level_tokenizer(
    specials: Sequence[str], names: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Bytes and `specials`, whose ids come first; `names` such as pad_token, image_token."""
    known = ("bos_token", "eos_token", "pad_token", "unk_token")
    named = dict(names or {})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: idx for idx, token in enumerate((*specials, *alphabet))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: named.pop(name) for name in known if name in named},
        extra_special_tokens=named,
    )


def _processor(select: str) -> LlavaProcessor:
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, do_resize=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=byte_level_tokenizer(SPECIALS, {**names, "image_token": "<image>"}),
        patch_size=PATCH,
        vision_feature_select_strategy=select,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
