"""Processors made in code, for random weights: tokenizer, image processor and chat template.

The tokenizer reads bytes and knows a word for every id of the vocabulary, so that whatever is
generated streams as text. There is no token that ends an answer.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
)

LLAVA_SPECIALS = ("<pad>", "<s>", "<image>")
_LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% endif %}{% endfor %}\n"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ImageTextProcessor(ProcessorMixin):  # type: ignore[misc]
    """The library's own Qwen2.5-VL processor demands a video processor, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        self.image_token = tokenizer.image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def llava_processor(*, vocab_size: int, side: int, patch: int) -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokenizer = _tokenizer(
        vocab_size,
        LLAVA_SPECIALS,
        pad_token="<pad>",
        bos_token="<s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )


def qwen_processor(*, vocab_size: int) -> ImageTextProcessor:
    tokenizer = _tokenizer(
        vocab_size,
        QWEN_SPECIALS,
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    return ImageTextProcessor(
        image_processor=Qwen2VLImageProcessorPil(),
        tokenizer=tokenizer,
        chat_template=_QWEN_TEMPLATE,
    )


def _tokenizer(vocab_size: int, specials: tuple[str, ...], **options: Any) -> Any:
    """Bytes in; a generated id beyond them reads as the word ` t<id>`."""
    known = (*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {token: idx for idx, token in enumerate(known)}
    vocabulary |= {f"Ġt{idx}": idx for idx in range(len(known), vocab_size)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)
