"""A model's own chat template, rendered with marks where texts go; never with the texts themselves.

Templates come with the model folder and run in the library's sandbox. What they cannot express (a
role they refuse, a message they drop) is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from allrounder.core import Message, Role
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
