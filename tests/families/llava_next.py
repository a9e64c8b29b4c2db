"""A tiny random LLaVA-NeXT: CLIP at 56 pixels, five resolutions of up to four tiles, Mistral."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
)

from tests.families.saving import INITIALIZER_RANGE, decoder_shape, save
from tests.tiny import byte_level_tokenizer

SPECIALS = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
SIDE, PATCH = 56, 14
RESOLUTIONS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> '}}"
    "{% endif %}{% endfor %}"
)


def tiny_llava_next_folder(folder: Path) -> Path:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=32,
            initializer_range=INITIALIZER_RANGE,
        ).to_dict(),
        text_config=MistralConfig(
            **decoder_shape(len(SPECIALS), sliding_window=None, pad_token_id=4)
        ).to_dict(),
        image_token_index=SPECIALS.index("<image>"),
        image_grid_pinpoints=RESOLUTIONS,
        vision_feature_layer=-2,
        initializer_range=INITIALIZER_RANGE,
    )
    return save(folder, LlavaNextForConditionalGeneration, config, _processor())


def _processor() -> LlavaNextProcessor:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=RESOLUTIONS,
        ),
        tokenizer=byte_level_tokenizer(SPECIALS, {**names, "image_token": "<image>"}),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
