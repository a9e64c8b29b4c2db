"""Tiny random Qwen2-VL, Qwen2.5-VL and Qwen3-VL folders, in the form of the published ones."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_WORDS = ("<tool_call>", "</tool_call>")
WIDTH, NUM_LAYERS, NUM_PLANES = 32, 6, 3
PATCH, MERGE = 4, 2
MIN_VISUAL, MAX_VISUAL = 64, 96

_CORPUS = (
    "system\nYou are a helpful assistant.\nuser\nWhat is there? What is it?\nassistant\n",
    "red green blue three where is the red one",
)
_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
)
_MESSAGES = (
    "{{% for message in messages %}}{system}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}<|vision_start|><|image_pad|><|vision_end|>"
    "{{% elif part['type'] == 'video' %}}<|vision_start|><|video_pad|><|vision_end|>"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}<|im_end|>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
TEMPLATE_2 = _MESSAGES.format(system=_SYSTEM)
TEMPLATE_3 = _MESSAGES.format(system="")


def tiny_qwen2_vl_folder(folder: Path, **text: Any) -> Path:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": WIDTH,
        "mlp_ratio": 2,
        "num_heads": 2,
    }
    config = Qwen2VLConfig(**_config(vision, mrope_section=[1, 1, 2], **text))
    return _written(folder, Qwen2VLForConditionalGeneration, config, TEMPLATE_2)


def tiny_qwen2_5_vl_folder(folder: Path, **text: Any) -> Path:
    """Windows of 2 x 2 merged patches in the first block of the tower, none in the second."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": WIDTH,
        "num_heads": 2,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(**_config(vision, mrope_section=[1, 1, 2], **text))
    return _written(folder, Qwen2_5_VLForConditionalGeneration, config, TEMPLATE_2)


def tiny_qwen3_vl_folder(folder: Path, **text: Any) -> Path:
    """DeepStack behind the first half of the layers; heads wider than width / heads."""
    vision = {
        "depth": NUM_PLANES + 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": WIDTH,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": list(range(NUM_PLANES)),
    }
    text = {"head_dim": 16, "mrope_interleaved": True, **text}
    config = Qwen3VLConfig(**_config(vision, mrope_section=[4, 2, 2], **text))
    return _written(folder, Qwen3VLForConditionalGeneration, config, TEMPLATE_3)


def _config(vision: dict[str, Any], *, mrope_section: list[int], **text: Any) -> dict[str, Any]:
    """Theta is small so that few positions on each axis already turn a query."""
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": mrope_section}
    if interleaved := text.pop("mrope_interleaved", None):
        rope["mrope_interleaved"] = interleaved
    tokenizer = _tokenizer()
    return {
        "vision_config": {
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "initializer_range": 0.3,
            **vision,
        },
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "rope_parameters": rope,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **text,
        },
        **{
            f"{name}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
            for name, token in (
                ("image_token", "image_pad"),
                ("video_token", "video_pad"),
                ("vision_start_token", "vision_start"),
                ("vision_end_token", "vision_end"),
            )
        },
    }


def _written(folder: Path, kind: Any, config: Any, template: str) -> Path:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for token_id in (config.image_token_id, config.video_token_id):
            model.lm_head.weight[token_id] = 0  # as after training: a model never writes one
    tokenizer = _tokenizer()
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.update(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    area = (PATCH * MERGE) ** 2
    Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        size={"shortest_edge": MIN_VISUAL * area, "longest_edge": MAX_VISUAL * area},
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@lru_cache(maxsize=1)
def _tokenizer() -> Qwen2Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(_CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=list(SPECIALS),
    )
    tokenizer.add_tokens([AddedToken(word, special=False) for word in ADDED_WORDS])
    return tokenizer
