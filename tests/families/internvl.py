"""A tiny random InternVL: its own tower at 80 pixels, 25 tokens a tile, up to four tiles, Qwen2."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    Qwen2Config,
)

from tests.families.saving import (
    INITIALIZER_RANGE,
    PIXEL_STATISTICS,
    decoder_shape,
    no_video,
    save,
    without_torchvision,
)
from tests.tiny import byte_level_tokenizer

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
)
SIDE, PATCH, DOWNSAMPLE = 80, 8, 0.5
TOKENS_PER_TILE = int((SIDE // PATCH * DOWNSAMPLE) ** 2)
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_internvl_folder(folder: Path) -> Path:
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
            layer_scale_init_value=1.0,
            initializer_range=INITIALIZER_RANGE,
        ).to_dict(),
        text_config=Qwen2Config(**decoder_shape(len(SPECIALS))).to_dict(),
        image_token_id=SPECIALS.index("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_TILE,
        downsample_ratio=DOWNSAMPLE,
        initializer_range=INITIALIZER_RANGE,
    )
    with without_torchvision():
        processor = _processor()
    return save(folder, InternVLForConditionalGeneration, config, processor)


def _processor() -> InternVLProcessor:
    names = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, max_patches=4, **PIXEL_STATISTICS
        ),
        tokenizer=byte_level_tokenizer(SPECIALS, names),
        video_processor=no_video(),
        image_seq_length=TOKENS_PER_TILE,
        chat_template=TEMPLATE,
    )
