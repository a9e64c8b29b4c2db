"""Questions about places and relations: position, comparison, corner and where."""

from __future__ import annotations

from random import Random

from allrounder.demo.ask_attributes import NO, YES
from allrounder.demo.facts import denoted, extreme, place_answers, region, unique_descriptions
from allrounder.demo.scenes import Scene
from allrounder.demo.wording import (
    Attributes,
    Phrase,
    Question,
    colour_answers,
    compose,
    noun_phrase,
    with_article,
)

MIN_OFFSET = 0.08
# Questions that name both outcomes; a yes or no about a relation is learned much later than these.
OPEN_SHARE = 0.5
MIN_RATIO = 1.35
CORNER_MARGIN = 0.08
POSITION = ("is the {a} {relation} the {b}",)
WHICH_SIDE = {
    "x": (
        "is the {a} left or right of the {b}",
        "is the {a} to the left or to the right of the {b}",
    ),
    "y": ("is the {a} above or below the {b}", "is the {a} over or under the {b}"),
}
SIDES = {
    ("x", -1): ("left", "to the left", "left of it"),
    ("x", 1): ("right", "to the right", "right of it"),
    ("y", -1): ("above", "over", "above it"),
    ("y", 1): ("below", "under", "below it"),
}
RELATIONS = {
    ("x", -1): ("left of", "to the left of", "on the left of"),
    ("x", 1): ("right of", "to the right of", "on the right of"),
    ("y", -1): ("above", "over", "higher than"),
    ("y", 1): ("below", "under", "lower than"),
}
MORE = ("are there more {a} than {b}", "does the {image} show more {a} than {b}")
FEWER = ("are there fewer {a} than {b}", "does the {image} show fewer {a} than {b}")
LARGER = ("is the {a} larger than the {b}", "is the {a} bigger than the {b}")
SMALLER = ("is the {a} smaller than the {b}",)
WHICH_MORE = ("are there more {a} or {b}", "which are there more of, {a} or {b}")
WHICH_LARGER = ("which is larger, the {a} or the {b}", "which is bigger, the {a} or the {b}")
CORNER_SHAPE = (
    "what shape is at the {place}",
    "what shape is in the {place} corner",
    "which shape is nearest to the {place} corner",
    "what shape is closest to the {place} corner",
    "what is the shape in the {place} corner",
)
CORNER_COLOUR = (
    "what {colour} is the shape at the {place}",
    "what {colour} is the object in the {place} corner",
    "which {colour} is nearest to the {place} corner",
    "what is the {colour} of the shape in the {place} corner",
)
EDGE_SHAPE = ("what shape is the {edge} object", "which shape is {far}")
EDGE_COLOUR = ("what {colour} is the {edge} shape", "which {colour} is the {edge} object")
EDGES = {
    ("x", 1): ("leftmost", "furthest to the left"),
    ("x", -1): ("rightmost", "furthest to the right"),
    ("y", 1): ("topmost", "nearest to the top"),
    ("y", -1): ("bottommost", "nearest to the bottom"),
}
WHERE = (
    "where is the {np}",
    "where in the {image} is the {np}",
    "where can I find the {np}",
    "in which part of the {image} is the {np}",
    "where do you see the {np}",
)


def ask_position(scene: Scene, rng: Random) -> Question | None:
    pair = _draw_pair(scene, rng)
    if pair is None:
        return None
    (i, a), (j, b) = pair
    axis = rng.choice("xy")
    offset = getattr(scene.objects[i], axis) - getattr(scene.objects[j], axis)
    if abs(offset) < MIN_OFFSET:
        return None
    slots: dict[str, Phrase | str] = {"a": a, "b": b}
    if rng.random() < OPEN_SHARE:
        side = 1 if offset > 0 else -1
        return compose(rng, "position", WHICH_SIDE[axis], SIDES[axis, side], slots)
    side = rng.choice((-1, 1))
    slots["relation"] = rng.choice(RELATIONS[axis, side])
    answers = YES if (offset > 0) == (side > 0) else NO
    return compose(rng, "position", POSITION, answers, slots)


def ask_compare(scene: Scene, rng: Random) -> Question | None:
    return _compare_counts(scene, rng) if rng.random() < 0.5 else _compare_sizes(scene, rng)


def _compare_counts(scene: Scene, rng: Random) -> Question | None:
    name = rng.choice(("colour", "shape"))
    known = sorted({getattr(item, name) for item in scene.objects})
    if len(known) < 2:
        return None
    first, second = (Attributes(**{name: value}) for value in rng.sample(known, 2))
    found = denoted(scene, first), denoted(scene, second)
    if len(found[0]) == len(found[1]):
        return None
    slots = {
        "a": Phrase(noun_phrase(rng, first, plural=True), found[0]),
        "b": Phrase(noun_phrase(rng, second, plural=True), found[1]),
    }
    if rng.random() < OPEN_SHARE:
        winner = slots["a" if len(found[0]) > len(found[1]) else "b"].words
        return compose(rng, "compare", WHICH_MORE, (winner,), slots)
    more = rng.random() < 0.65
    holds = (len(found[0]) > len(found[1])) == more
    return compose(rng, "compare", MORE if more else FEWER, YES if holds else NO, slots)


def _compare_sizes(scene: Scene, rng: Random) -> Question | None:
    pair = _draw_pair(scene, rng, hide="size")
    if pair is None:
        return None
    (i, a), (j, b) = pair
    ratio = scene.objects[i].size_ratio / scene.objects[j].size_ratio
    if max(ratio, 1 / ratio) < MIN_RATIO:
        return None
    if rng.random() < OPEN_SHARE:
        winner = (a if ratio > 1 else b).words
        names = (f"the {winner}", winner)
        return compose(rng, "compare", WHICH_LARGER, names, {"a": a, "b": b})
    larger = rng.random() < 0.65
    answers = YES if (ratio > 1) == larger else NO
    return compose(rng, "compare", LARGER if larger else SMALLER, answers, {"a": a, "b": b})


def ask_corner(scene: Scene, rng: Random) -> Question | None:
    return _ask_edge(scene, rng) if rng.random() < 0.3 else _ask_corner(scene, rng)


def _ask_corner(scene: Scene, rng: Random) -> Question | None:
    vertical, horizontal = rng.choice(("top", "bottom")), rng.choice(("left", "right"))
    x, y = float(horizontal == "right"), float(vertical == "bottom")
    distances = [abs(item.x - x) + abs(item.y - y) for item in scene.objects]
    index = extreme(distances, CORNER_MARGIN)
    if index is None or distances[index] > 0.9:
        return None
    word = "upper" if vertical == "top" and rng.random() < 0.15 else vertical
    place = Phrase(f"{word} {horizontal}", (index,))
    return _shape_or_colour(scene, rng, index, (CORNER_SHAPE, CORNER_COLOUR), {"place": place})


def _ask_edge(scene: Scene, rng: Random) -> Question | None:
    axis, sign = rng.choice(list(EDGES))
    index = extreme([sign * getattr(item, axis) for item in scene.objects], MIN_OFFSET)
    if index is None:
        return None
    adjective, phrase = EDGES[axis, sign]
    slots = {"edge": Phrase(adjective, (index,)), "far": Phrase(phrase, (index,))}
    return _shape_or_colour(scene, rng, index, (EDGE_SHAPE, EDGE_COLOUR), slots)


def _shape_or_colour(
    scene: Scene,
    rng: Random,
    index: int,
    templates: tuple[tuple[str, ...], tuple[str, ...]],
    slots: dict[str, Phrase],
) -> Question:
    item = scene.objects[index]
    if rng.random() < 0.5:
        answers = (item.shape, with_article(item.shape))
        return compose(rng, "corner", templates[0], answers, slots)
    return compose(rng, "corner", templates[1], colour_answers(item.colour), slots)


def ask_where(scene: Scene, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.objects))
    place = region(scene.objects[index])
    choices = list(unique_descriptions(scene, index))
    if place is None or not choices:
        return None
    slot = Phrase(noun_phrase(rng, rng.choice(choices)), (index,))
    return compose(rng, "where", WHERE, place_answers(place), {"np": slot})


def _draw_pair(
    scene: Scene, rng: Random, hide: str | None = None
) -> tuple[tuple[int, Phrase], tuple[int, Phrase]] | None:
    if len(scene.objects) < 2:
        return None
    named = []
    for index in rng.sample(range(len(scene.objects)), 2):
        choices = list(unique_descriptions(scene, index, hide=hide))
        if not choices:
            return None
        named.append((index, Phrase(noun_phrase(rng, rng.choice(choices)), (index,))))
    return named[0], named[1]
