"""How much of a description is right: the attributes it names beside those that were asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from allrounder.demo.scenes import COLOURS, SHAPES
from allrounder.demo.wording import GENERIC_NOUNS, Mention, pluralise

SLOTS = ("number", "size", "colour", "shape", "place", "relation")
SINGULAR = {form: noun for noun in (*SHAPES, *GENERIC_NOUNS) for form in (noun, pluralise(noun))}
ATTRIBUTES: dict[str, tuple[str, str]] = {
    **{colour: ("colour", colour) for colour in COLOURS},
    **{form: ("shape", noun) for form, noun in SINGULAR.items() if noun in SHAPES},
    **dict.fromkeys(("small", "little"), ("size", "small")),
    **dict.fromkeys(("large", "big"), ("size", "large")),
    **dict.fromkeys(("several", "many"), ("number", "several")),
    **dict.fromkeys(("largest", "biggest"), ("role", "largest")),
    "smallest": ("role", "smallest"),
}
PLACES = {
    "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom",
    "left": "left", "right": "right", "middle": "", "center": "", "centre": "",
}  # fmt: skip
SIDES = {"above": "above", "over": "above", "below": "below", "under": "below"}
OPPOSITE = {"right": "left", "below": "above"}
ARTICLES = ("a", "an", "the")
IMAGE_NOUNS = ("image", "picture")


def named_right(answer: str, described: Sequence[Mention]) -> float:
    """From 0 to 1: the F1 of the attributes that the answer names, objects matched at best.

    Every attribute that is named and was not asked for counts as wrong, unless it repeats rightly
    what the question told. The order of the objects is free; "b right of a" is "a left of b".
    """
    named = read_mentions(answer)
    right, repeated = _best_match(described, named)
    num_asked = sum(len(_told(mention) - mention.given) for mention in described)
    num_named = sum(len(_told(mention)) for mention in named) - repeated
    return 2 * right / (num_asked + num_named) if num_asked else 0.0


def read_mentions(text: str) -> list[Mention]:
    """The objects that a text names, by the closed vocabulary; other words are passed over."""
    reader = _Reader(re.findall(r"[a-z]+", text.lower().replace("grey", "gray")))
    return reader.read()


def _told(mention: Mention) -> frozenset[str]:
    return frozenset(name for name in SLOTS if getattr(mention, name) is not None)


def _best_match(asked: Sequence[Mention], named: Sequence[Mention]) -> tuple[int, int]:
    """(attributes right, attributes repeated rightly) of the best pairing; few are asked."""
    best = {0: (0, 0)}
    for mention in named:
        for taken, (right, repeated) in list(best.items()):
            for idx, wanted in enumerate(asked):
                if taken & 1 << idx:
                    continue
                more_right, more_repeated = _agreement(wanted, mention)
                found = right + more_right, repeated + more_repeated
                best[taken | 1 << idx] = max(best.get(taken | 1 << idx, (0, 0)), found)
    return max(best.values())


def _agreement(wanted: Mention, mention: Mention) -> tuple[int, int]:
    if wanted.role not in (None, mention.role):
        return 0, 0
    equal = {name for name in _told(wanted) if getattr(wanted, name) == getattr(mention, name)}
    return len(equal - wanted.given), len(equal & wanted.given)


class _Reader:
    """Goes through the words once; an object ends with its noun, its place follows."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._found: list[dict[str, Any]] = []
        self._is_closed = True
        self._awaited: tuple[dict[str, Any], str] | None = None

    def read(self) -> list[Mention]:
        for idx, word in enumerate(self._words):
            if word in ATTRIBUTES:
                self._name(*ATTRIBUTES[word])
            elif word in SINGULAR:
                self._is_closed = self._is_closed or len(self._found[-1].keys() - {"role"}) > 0
            elif word in PLACES or word in SIDES:
                self._locate(idx, word)
        if self._awaited is not None:
            subject, side = self._awaited
            _add(subject, "relation", side)
        return [Mention(**slots) for slots in self._found]

    def _name(self, slot: str, value: str) -> None:
        if self._is_closed or slot in self._found[-1]:
            self._open()
        self._found[-1][slot] = value
        self._is_closed = slot == "shape"

    def _open(self) -> None:
        self._found.append({})
        self._is_closed = False
        if self._awaited is not None:
            subject, side = self._awaited
            turned = side in OPPOSITE
            _add(self._found[-1] if turned else subject, "relation", OPPOSITE.get(side, side))
            self._awaited = None

    def _locate(self, idx: int, word: str) -> None:
        if not self._found:
            self._open()
        self._is_closed = self._is_closed or "shape" in self._found[-1]
        if word in SIDES or (word in ("left", "right") and self._is_relative(idx)):
            self._relate(idx, SIDES.get(word, word))
            return
        slots = self._found[-1]
        words = {*slots.get("place", "center").split(), PLACES[word]} - {"", "center"}
        slots["place"] = " ".join(sorted(words, key=list(PLACES).index)) or "center"

    def _relate(self, idx: int, side: str) -> None:
        is_own = self._words[idx - 1] == "its" if idx else False
        if is_own or self._target(idx) == "it":
            _add(self._found[-1], "relation", side)
        else:
            self._awaited = self._found[-1], side

    def _is_relative(self, idx: int) -> bool:
        if self._words[idx + 1 : idx + 2] == ["of"]:
            return self._target(idx) not in IMAGE_NOUNS
        before = self._words[max(0, idx - 2) : idx]
        return before[-1:] == ["its"] or before == ["to", "the"]

    def _target(self, idx: int) -> str:
        """The next word that says something."""
        rest = (w for w in self._words[idx + 1 :] if w not in ARTICLES and w != "of")
        return next(rest, "")


def _add(slots: dict[str, Any], slot: str, value: str) -> None:
    """A second, different value makes the slot wrong whatever was asked for."""
    before = slots.get(slot, value)
    slots[slot] = value if before == value else f"{before} {value}"
