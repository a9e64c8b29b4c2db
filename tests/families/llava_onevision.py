"""A tiny random LLaVA-OneVision: SigLIP at 56 pixels, up to nine tiles pooled to two, Qwen2."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
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

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
SIDE, PATCH = 56, 14
RESOLUTIONS = [[height, width] for height, width in product((56, 112, 168), repeat=2)]
POOLED = "anyres_max_2"
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llava_onevision_folder(folder: Path) -> Path:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        ).to_dict(),
        text_config=Qwen2Config(**decoder_shape(len(SPECIALS))).to_dict(),
        image_token_index=SPECIALS.index("<image>"),
        video_token_index=SPECIALS.index("<video>"),
        image_grid_pinpoints=RESOLUTIONS,
        vision_aspect_ratio=POOLED,
        initializer_range=INITIALIZER_RANGE,
    )
    with without_torchvision():
        processor = _processor()
    return save(folder, LlavaOnevisionForConditionalGeneration, config, processor)


def _processor() -> LlavaOnevisionProcessor:
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    modalities = {"image_token": "<image>", "video_token": "<video>"}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=RESOLUTIONS,
            **PIXEL_STATISTICS,
        ),
        tokenizer=byte_level_tokenizer(SPECIALS, {**names, **modalities}),
        video_processor=no_video(),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=POOLED,
        chat_template=TEMPLATE,
    )
