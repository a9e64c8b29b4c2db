"""Prompt ids by position: template tokens may be special, the user's text never is.

The chat template is rendered with a sentinel where the question goes. Ordinary questions are
tokenised with the template around them, exactly as the library would. A question that spells an
added token is tokenised by a twin of the tokenizer that has no added tokens, so it stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from app.core import ImageLayout, Prompt
from app.errors import ModelUnsupported

SENTINEL = "\ue000question\ue001"


class PromptBuilder:
    """Builds prompts for one processor; thread-safe after construction.

    Args:
        processor: a transformers processor with `tokenizer` and a chat template.
        image_token: what the template writes where an image goes.
        image_token_id: the id whose runs mark visual slots.
    """

    def __init__(self, processor: Any, *, image_token: str, image_token_id: int) -> None:
        self._processor = processor
        self._image_token = image_token
        self._image_token_id = image_token_id
        self._tokenizer: Tokenizer = processor.tokenizer.backend_tokenizer
        self._text_only = _without_added_tokens(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added_ids = {token.content: idx for idx, token in added.items()}
        alternatives = sorted(self._added_ids, key=len, reverse=True)
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, alternatives)) + ")")
        self._template = lru_cache(maxsize=32)(self._render)

    def build(self, question: str, layouts: Sequence[ImageLayout]) -> Prompt:
        """Ids of one user message with images of these layouts."""
        before, after = self._template(len(layouts))
        before = self._with_placeholders(before, layouts)
        if SENTINEL in question:
            question = question.replace(SENTINEL, "")
        ids = self._tokenizer.encode(before + question + after, add_special_tokens=False).ids
        if self._num_added(ids) != self._num_added_in(before) + self._num_added_in(after):
            ids = self._encode_apart(before, question, after)
        return self._expand(ids, layouts)

    def _render(self, num_images: int) -> tuple[str, str]:
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": SENTINEL}]
        rendered = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        parts = rendered.split(SENTINEL)
        if len(parts) != 2:
            raise ModelUnsupported("the chat template must place the user's text exactly once")
        if parts[0].count(self._image_token) != num_images:
            raise ModelUnsupported("the chat template must place each image before the text")
        bos = self._processor.tokenizer.bos_token
        adds_bos = getattr(self._processor.tokenizer, "add_bos_token", False)
        if bos and adds_bos and not parts[0].startswith(bos):
            parts[0] = bos + parts[0]
        return parts[0], parts[1]

    def _num_added(self, ids: Sequence[int]) -> int:
        added = set(self._added_ids.values())
        return sum(token_id in added for token_id in ids)

    def _num_added_in(self, text: str) -> int:
        return len(self._added_pattern.findall(text))

    def _with_placeholders(self, before: str, layouts: Sequence[ImageLayout]) -> str:
        first, *rest = before.split(self._image_token)
        assert len(rest) == len(layouts), "checked when the template was rendered"
        pairs = zip(layouts, rest, strict=True)
        return first + "".join(layout.placeholder + text for layout, text in pairs)

    def _encode_apart(self, before: str, question: str, after: str) -> list[int]:
        left, right = self._added_pattern.split(before), self._added_pattern.split(after)
        middle = left.pop() + question + right.pop(0)
        ids = [i for piece in left for i in self._template_piece(piece)]
        ids += self._text_only.encode(middle, add_special_tokens=False).ids
        return ids + [i for piece in right for i in self._template_piece(piece)]

    def _template_piece(self, piece: str) -> list[int]:
        if piece in self._added_ids:
            return [self._added_ids[piece]]
        return list(self._text_only.encode(piece, add_special_tokens=False).ids) if piece else []

    def _expand(self, ids: Sequence[int], layouts: Sequence[ImageLayout]) -> Prompt:
        counts = (count for layout in layouts for count in layout.runs)
        expanded: list[int] = []
        slots: list[tuple[int, int]] = []
        for token_id in ids:
            if token_id == self._image_token_id:
                count = next(counts)
                slots.append((len(expanded), count))
                expanded.extend([token_id] * count)
            else:
                expanded.append(token_id)
        text_start = sum(slots[-1]) if slots else 0
        return Prompt(
            token_ids=tuple(expanded),
            visual_slots=tuple(slots),
            visual_per_image=tuple(layout.num_visual for layout in layouts),
            question_slot=(text_start, len(expanded) - text_start),
        )


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    state["post_processor"] = None
    return Tokenizer.from_str(json.dumps(state))
