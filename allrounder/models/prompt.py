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
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from allrounder.core import ImageLayout, Message, Prompt, Role, one_question
from allrounder.errors import AllrounderError, InvalidField, ModelUnsupported

Outline = tuple[tuple[Role, tuple[bool, ...]], ...]
"""Each message's role and, of each of its parts, whether it is an image."""

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_REFUSALS = (TemplateError, TypeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A conversation as its template writes it.

    Attributes:
        pieces: the template's own words, and indexes of the conversation's texts between them.
    """

    pieces: tuple[str | int, ...]


class ChatTemplate:
    """Renders outlines with one processor's template; thread-safe."""

    def __init__(self, processor: Any, *, image_token: str) -> None:
        self._processor = processor
        self._image_token = image_token
        self._cached = lru_cache(maxsize=64)(self._render)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Raises InvalidField where the template does not know such a conversation."""
        return self._cached(
            tuple((each.role, tuple(part is None for part in each.parts)) for each in messages)
        )

    def _render(self, outline: Outline) -> Rendered:
        refused: AllrounderError | None = None
        for plain in (False, True):
            try:
                written = self._written(outline, plain=plain)
            except _REFUSALS:
                refused = refused or self._refusal(outline)
                continue
            lost = self._lost(outline, written)
            if lost is None:
                return self._split(written)
            refused = refused or lost
        assert refused is not None, "both ways were tried"
        raise refused

    def _written(self, outline: Outline, *, plain: bool) -> str:
        """`plain`: messages of a single text are strings, as some templates want them."""
        count, messages = 0, []
        for role, parts in outline:
            content: list[dict[str, str]] = []
            for is_image in parts:
                if is_image:
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": f"{_OPEN}{count}{_CLOSE}"})
                    count += 1
            as_text = plain and parts == (False,)
            messages.append(
                {"role": role.value, "content": content[0]["text"] if as_text else content}
            )
        written: str = self._processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return written

    def _split(self, written: str) -> Rendered:
        texts = _MARK.split(written)
        bos = self._processor.tokenizer.bos_token
        adds_bos = getattr(self._processor.tokenizer, "add_bos_token", False)
        if bos and adds_bos and not texts[0].startswith(bos):
            texts[0] = bos + texts[0]
        return Rendered(
            pieces=tuple(int(text) if idx % 2 else text for idx, text in enumerate(texts))
        )

    def _lost(self, outline: Outline, written: str) -> AllrounderError | None:
        """What the template did not write exactly once."""
        marks = [int(mark) for mark in _MARK.findall(written)]
        first = 0
        for idx, (_, parts) in enumerate(outline):
            num_texts = parts.count(False)
            if any(marks.count(text) != 1 for text in range(first, first + num_texts)):
                return _unplaced(outline, idx, "text")
            first += num_texts
        if _MARK.sub("", written).count(self._image_token) != sum(
            p.count(True) for _, p in outline
        ):
            return _unplaced(
                outline, next(i for i, (_, p) in enumerate(outline) if any(p)), "images"
            )
        return None

    def _refusal(self, outline: Outline) -> AllrounderError:
        """Which message the template raised an error about."""
        others = tuple(each for each in outline if each[0] is not Role.SYSTEM)
        system = [idx for idx, (role, _) in enumerate(outline) if role is Role.SYSTEM]
        if system and others:
            try:
                self._written(others, plain=False)
            except _REFUSALS:
                pass
            else:
                return _refuses_role(system[0])
        if _is_one_question(outline):
            return ModelUnsupported("the chat template refuses a user's message")
        what = "roles" if len(outline) > 1 else "texts and images"
        return InvalidField(
            f"messages: this model's chat template refuses this order of {what}", param="messages"
        )


def _unplaced(outline: Outline, idx: int, what: str) -> AllrounderError:
    if _is_one_question(outline):
        return ModelUnsupported(f"the chat template must place the user's {what} exactly once")
    if outline[idx][0] is Role.SYSTEM:
        return _refuses_role(idx)
    param = f"messages.{idx}"
    return InvalidField(
        f"{param}: this model's chat template has no place for the message's {what}", param=param
    )


def _refuses_role(idx: int) -> InvalidField:
    param = f"messages.{idx}.role"
    return InvalidField(
        f"{param}: this model's chat template knows no system messages; put it into the first "
        "user message",
        param=param,
    )


def _is_one_question(outline: Outline) -> bool:
    """Of the shape that `one_question` has, so that the caller could not have asked otherwise."""
    if len(outline) != 1:
        return False
    role, parts = outline[0]
    return role is Role.USER and parts == (*(True,) * (len(parts) - 1), False)


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
