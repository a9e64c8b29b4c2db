"""Prompt ids by position: template tokens may be special, what a caller wrote never is.

The chat template is rendered with marks where texts go. Ordinary texts are tokenised with the
template around them, exactly as the library would. Where one spells an added token, all of them are
tokenised by a twin of the tokenizer that has no added tokens, so they stay text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from allrounder.core import ImageLayout, Message, Prompt, Role, one_question
from allrounder.models.chat_template import ChatTemplate

SENTINEL = "\ue000question\ue001"

Span = tuple[int, int]
"""From one character of the prompt's text to before another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A stretch of the prompt's text; `message` is whose words it holds, None the template's."""

    text: str
    start: int
    message: int | None

    @property
    def span(self) -> Span:
        return self.start, self.start + len(self.text)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    """Ids, and the characters that each stands for."""

    ids: list[int]
    spans: list[Span]


class PromptBuilder:
    """Builds prompts for one processor; thread-safe after construction.

    Args:
        processor: a transformers processor with `tokenizer` and a chat template.
        image_token: what the template writes where an image goes.
        image_token_id: the id whose runs mark visual slots.
    """

    def __init__(self, processor: Any, *, image_token: str, image_token_id: int) -> None:
        self._template = ChatTemplate(processor, image_token=image_token)
        self._image_token = image_token
        self._image_token_id = image_token_id
        self._tokenizer: Tokenizer = processor.tokenizer.backend_tokenizer
        self._text_only = _without_added_tokens(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._id_of_added = {token.content: idx for idx, token in added.items()}
        self._added_ids = frozenset(self._id_of_added.values())
        alternatives = sorted(self._id_of_added, key=len, reverse=True)
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, alternatives)) + ")")

    def build(self, question: str, layouts: Sequence[ImageLayout]) -> Prompt:
        """Ids of one user message with images of these layouts before its text."""
        return self.converse(one_question(question, num_images=len(layouts)), layouts)

    def converse(self, messages: Sequence[Message], layouts: Sequence[ImageLayout]) -> Prompt:
        """Ids of a conversation whose images, in order, have these layouts.

        Raises:
            InvalidField: the model's template does not know such a conversation.
        """
        pieces = self._pieces(messages, layouts)
        return self._expand(self._encode(pieces), _last_words(messages, pieces), layouts)

    def _pieces(self, messages: Sequence[Message], layouts: Sequence[ImageLayout]) -> list[_Piece]:
        texts = [
            (idx, part.replace(SENTINEL, ""))
            for idx, message in enumerate(messages)
            for part in message.parts
            if part is not None
        ]
        waiting = iter(layouts)
        pieces: list[_Piece] = []
        start = 0
        for piece in self._template.render(messages).pieces:
            if isinstance(piece, int):
                message, text = texts[piece]
                pieces.append(_Piece(text=text, start=start, message=message))
            else:
                text = self._with_placeholders(piece, waiting)
                pieces.append(_Piece(text=text, start=start, message=None))
            start += len(text)
        return pieces

    def _with_placeholders(self, text: str, layouts: Iterator[ImageLayout]) -> str:
        first, *rest = text.split(self._image_token)
        return first + "".join(next(layouts).placeholder + after for after in rest)

    def _encode(self, pieces: Sequence[_Piece]) -> _Tokens:
        whole = "".join(piece.text for piece in pieces)
        encoding = self._tokenizer.encode(whole, add_special_tokens=False)
        num_added = sum(token_id in self._added_ids for token_id in encoding.ids)
        meant = [
            (piece.start + found.start(), piece.start + found.end())
            for piece in pieces
            if piece.message is None
            for found in self._added_pattern.finditer(piece.text)
        ]
        spelled = [found.span() for found in self._added_pattern.finditer(whole)]
        if num_added != len(meant) or spelled != meant:
            return self._encode_apart(pieces)
        return _Tokens(ids=encoding.ids, spans=encoding.offsets)

    def _encode_apart(self, pieces: Sequence[_Piece]) -> _Tokens:
        found = _Tokens(ids=[], spans=[])
        pending, start = "", 0
        for piece in pieces:
            parts = [piece.text]
            if piece.message is None:
                parts = self._added_pattern.split(piece.text)
            for idx, part in enumerate(parts):
                if idx % 2 == 0:
                    pending += part
                    continue
                start = self._encode_text(pending, start, found)
                found.ids.append(self._id_of_added[part])
                found.spans.append((start, start + len(part)))
                pending, start = "", start + len(part)
        self._encode_text(pending, start, found)
        return found

    def _encode_text(self, text: str, start: int, found: _Tokens) -> int:
        """Appends the ids of what holds no token but text; where it ends."""
        if text:
            encoding = self._text_only.encode(text, add_special_tokens=False)
            found.ids.extend(encoding.ids)
            found.spans.extend((start + first, start + last) for first, last in encoding.offsets)
        return start + len(text)

    def _expand(
        self, tokens: _Tokens, last_words: Sequence[Span], layouts: Sequence[ImageLayout]
    ) -> Prompt:
        counts = (count for layout in layouts for count in layout.runs)
        expanded: list[int] = []
        slots: list[tuple[int, int]] = []
        said: list[int] = []
        for token_id, span in zip(tokens.ids, tokens.spans, strict=True):
            if token_id == self._image_token_id:
                count = next(counts)
                slots.append((len(expanded), count))
                expanded.extend([token_id] * count)
                continue
            if any(_overlap(span, words) for words in last_words):
                said.append(len(expanded))
            expanded.append(token_id)
        start = sum(slots[-1]) if slots else 0
        return Prompt(
            token_ids=tuple(expanded),
            visual_slots=tuple(slots),
            visual_per_image=tuple(layout.num_visual for layout in layouts),
            question_slot=(start, len(expanded) - start),
            earlier_slots=() if said and said[-1] >= start else _runs(said),
        )


def _last_words(messages: Sequence[Message], pieces: Sequence[_Piece]) -> list[Span]:
    """Where the last user message that has words has them."""
    told = [
        piece
        for piece in pieces
        if piece.message is not None
        and messages[piece.message].role is Role.USER
        and piece.text.strip()
    ]
    last = max((piece.message for piece in told if piece.message is not None), default=None)
    return [piece.span for piece in told if piece.message == last]


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _runs(rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending rows as (start, count) of each stretch without a gap."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and sum(runs[-1]) == row:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return tuple(runs)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = []
    state["post_processor"] = None
    return Tokenizer.from_str(json.dumps(state))
