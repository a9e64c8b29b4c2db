"""Tiny random Idefics3 and SmolVLM: 25 tokens a tile of 80 pixels, up to nine tiles, Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from tests.families.saving import (
    INITIALIZER_RANGE,
    decoder_shape,
    no_video,
    save,
    without_torchvision,
)
from tests.tiny import byte_level_tokenizer

MOST_TILES = 3
SPECIALS = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row + 1}_col_{col + 1}>" for row in range(MOST_TILES) for col in range(MOST_TILES)),
)
SIDE, PATCH, SCALE = 80, 8, 2
TOKENS_PER_TILE = (SIDE // PATCH // SCALE) ** 2
NAMES = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def tiny_idefics3_folder(folder: Path) -> Path:
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(**_image_sizes()),
        tokenizer=byte_level_tokenizer(SPECIALS, NAMES),
        image_seq_len=TOKENS_PER_TILE,
        chat_template=TEMPLATE,
    )
    config = Idefics3Config(**_config_fields())
    return save(folder, Idefics3ForConditionalGeneration, config, processor)


def tiny_smolvlm_folder(folder: Path) -> Path:
    names = {
        **NAMES,
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    with without_torchvision():
        processor = SmolVLMProcessor(
            image_processor=SmolVLMImageProcessorPil(**_image_sizes()),
            tokenizer=byte_level_tokenizer(SPECIALS, names),
            video_processor=no_video(),
            image_seq_len=TOKENS_PER_TILE,
            chat_template=TEMPLATE,
        )
    config = SmolVLMConfig(**_config_fields())
    return save(folder, SmolVLMForConditionalGeneration, config, processor)


def _image_sizes() -> dict[str, Any]:
    return {
        "size": {"longest_edge": MOST_TILES * SIDE},
        "max_image_size": {"longest_edge": SIDE},
    }


def _config_fields() -> dict[str, Any]:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": INITIALIZER_RANGE,
    }
    return {
        "vision_config": vision,
        "text_config": LlamaConfig(
            **decoder_shape(len(SPECIALS), bos_token_id=0, eos_token_id=1, pad_token_id=2)
        ).to_dict(),
        "image_token_id": SPECIALS.index("<image>"),
        "scale_factor": SCALE,
        "initializer_range": INITIALIZER_RANGE,
    }
