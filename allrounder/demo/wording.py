"""How a question is put into words: noun phrases, templates, and which words name what."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
GENERIC_NOUNS = ("shape", "object", "thing")
_FORMATTER = string.Formatter()


@dataclass(frozen=True, kw_only=True)
class NounPhrase:
    """Characters [start, end) of a head noun, and the objects its phrase denotes."""

    start: int
    end: int
    objects: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one scene; the first of the accepted answers is the one trained on.

    `objects` are the indexes of the scene objects that the answer depends on; `described` is what
    a whole description names, empty where a word or two is the answer.
    """

    type: str
    text: str
    answers: tuple[str, ...]
    objects: tuple[int, ...]
    phrases: tuple[NounPhrase, ...]
    described: tuple[Mention, ...] = ()


@dataclass(frozen=True)
class Phrase:
    """Words whose last one is the head noun, and the objects they denote."""

    words: str
    objects: tuple[int, ...]


@dataclass(frozen=True)
class Attributes:
    """A description by attributes; None leaves an attribute open."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mention:
    """One object as a description names it; None is not named.

    Attributes:
        number: "several", of a group that is spoken of as one.
        place: third of the image, "top left" or "center".
        relation: the side of its neighbour on which it lies: left, right, above or below.
        role: "largest" or "smallest", of an object that is singled out; worth nothing by itself.
        given: attributes that the question tells already, so that repeating them earns nothing.
    """

    number: str | None = None
    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    place: str | None = None
    relation: str | None = None
    role: str | None = None
    given: frozenset[str] = frozenset()


def compose(
    rng: Random,
    type_name: str,
    templates: Sequence[str],
    answers: tuple[str, ...],
    slots: Mapping[str, Phrase | str],
    described: tuple[Mention, ...] = (),
) -> Question:
    """Fill a random template; {colour} and the like in it come in British or American spelling."""
    template = rng.choice(templates)
    words: dict[str, Phrase | str] = {**_spellings(rng), **slots}
    text, phrases = "", []
    for literal, field, _, _ in _FORMATTER.parse(template):
        text += literal
        if field is None:
            continue
        slot = words[field]
        if isinstance(slot, str):
            text += slot
            continue
        text += slot.words
        head = slot.words.rsplit(" ", 1)[-1]
        start = len(text) - len(head)
        phrases.append(NounPhrase(start=start, end=len(text), objects=slot.objects))
    about = sorted({index for phrase in phrases for index in phrase.objects})
    return Question(
        type=type_name,
        text=_punctuate(rng, text),
        answers=answers,
        objects=tuple(about),
        phrases=tuple(phrases),
        described=described,
    )


def noun_phrase(rng: Random, attributes: Attributes, *, plural: bool = False) -> str:
    """ "large red circles", "gray object": size, colour, then the shape or a general noun."""
    words = []
    if attributes.size is not None:
        words.append(_say_size(rng, attributes.size))
    if attributes.colour is not None:
        words.append(_say_colour(rng, attributes.colour))
    noun = attributes.shape or rng.choice(GENERIC_NOUNS)
    words.append(pluralise(noun) if plural else noun)
    return " ".join(words)


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def pluralise(noun: str) -> str:
    return noun + "es" if noun.endswith("s") else noun + "s"


def colour_answers(colour: str) -> tuple[str, ...]:
    return ("gray", "grey") if colour == "gray" else (colour,)


def number_answers(number: int) -> tuple[str, ...]:
    return (str(number), NUMBER_WORDS[number])


def _spellings(rng: Random) -> dict[str, str]:
    british = rng.random() < 0.5
    return {
        "colour": "colour" if british else "color",
        "centre": "centre" if british else "center",
        "image": rng.choice(("image", "picture")),
    }


def _say_size(rng: Random, size: str) -> str:
    synonym = {"large": "big", "small": "little"}[size]
    return synonym if rng.random() < 0.25 else size


def _say_colour(rng: Random, colour: str) -> str:
    return "grey" if colour == "gray" and rng.random() < 0.5 else colour


def _punctuate(rng: Random, text: str) -> str:
    if rng.random() < 0.65:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.8:
        text += "." if text.lower().startswith(("describe", "count", "name", "tell")) else "?"
    return text
