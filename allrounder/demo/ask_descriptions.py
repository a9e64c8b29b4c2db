"""Questions answered in five to twelve words: an object, its neighbour, or the whole image."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

from allrounder.demo.facts import (
    extreme,
    place_name,
    place_phrase,
    region,
    unique_descriptions,
)
from allrounder.demo.scenes import Scene, SceneObject
from allrounder.demo.wording import (
    Attributes,
    Mention,
    Phrase,
    Question,
    compose,
    noun_phrase,
    with_article,
)

MIN_OFFSET = 0.08
SIZE_MARGIN = 0.03
OBJECT = (
    "describe the {np}",
    "describe the {np} in the {image}",
    "describe the {np} and where it is",
    "tell me about the {np}",
    "what can you say about the {np}",
)
NEIGHBOUR = (
    "what is next to the {np}",
    "what is nearest to the {np}",
    "what is closest to the {np}",
    "describe the shape next to the {np}",
)
IMAGE = (
    "describe the {image}",
    "describe this {image}",
    "what is in the {image}",
    "what does the {image} show",
    "what do you see",
    "what can you see in the {image}",
)
SUPERLATIVES = {"largest": -1, "biggest": -1, "smallest": 1}
SIDES = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}
NOTHING = Attributes()


def ask_describe(scene: Scene, rng: Random) -> Question | None:
    kind = rng.choices((_object, _superlative, _neighbour, _image), (0.25, 0.2, 0.25, 0.3))[0]
    return kind(scene, rng)


def say_object(item: SceneObject) -> str:
    return with_article(f"{item.size} {item.colour} {item.shape}")


def _object(scene: Scene, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.objects))
    choices = list(unique_descriptions(scene, index))
    if not choices:
        return None
    chosen = rng.choice(choices)
    return _describe(scene, rng, index, noun_phrase(rng, chosen), given=chosen)


def _superlative(scene: Scene, rng: Random) -> Question | None:
    word, sign = rng.choice(list(SUPERLATIVES.items()))
    index = extreme([sign * item.size_ratio for item in scene.objects], SIZE_MARGIN)
    if index is None or len(scene.objects) < 2:
        return None
    return _describe(scene, rng, index, f"{word} {rng.choice(('shape', 'object', 'thing'))}")


def _describe(
    scene: Scene, rng: Random, index: int, words: str, given: Attributes = NOTHING
) -> Question | None:
    told = _placed(scene.objects[index])
    if told is None:
        return None
    answer, mention = told
    named = frozenset(name for name, value in vars(given).items() if value is not None)
    slots = {"np": Phrase(words, (index,))}
    described = (replace(mention, given=named),)
    return compose(rng, "describe", OBJECT, _answers(answer), slots, described)


def _neighbour(scene: Scene, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.objects))
    choices = list(unique_descriptions(scene, index))
    near = _nearest(scene, index)
    if near is None or not choices:
        return None
    here, there = scene.objects[index], scene.objects[near]
    dx, dy = there.x - here.x, there.y - here.y
    if abs(abs(dx) - abs(dy)) < MIN_OFFSET:
        return None
    across, along = ("left" if dx < 0 else "right"), ("above" if dy < 0 else "below")
    side = across if abs(dx) > abs(dy) else along
    slot = Phrase(noun_phrase(rng, rng.choice(choices)), (index, near))
    answer = f"{say_object(there)} {SIDES[side]}"
    described = (_mention(there, relation=side),)
    return compose(rng, "describe", NEIGHBOUR, _answers(answer), {"np": slot}, described)


def _nearest(scene: Scene, index: int) -> int | None:
    here = scene.objects[index]
    others = [i for i in range(len(scene.objects)) if i != index]
    distances = [
        ((scene.objects[i].x - here.x) ** 2 + (scene.objects[i].y - here.y) ** 2) ** 0.5
        for i in others
    ]
    best = extreme(distances, MIN_OFFSET)
    return None if best is None else others[best]


def _image(scene: Scene, rng: Random) -> Question | None:
    told = _summary(scene)
    if told is None:
        return None
    answer, described = told
    question = compose(rng, "describe", IMAGE, _answers(answer), {}, described)
    return replace(question, objects=tuple(range(len(scene.objects))))


def _summary(scene: Scene) -> tuple[str, tuple[Mention, ...]] | None:
    objects = scene.objects
    if len(objects) == 1:
        told = _placed(objects[0])
        return None if told is None else (told[0], (told[1],))
    if len(objects) == 2:
        return _pair(objects[0], objects[1])
    if len(objects) == 3:
        ordered = sorted(objects, key=lambda item: item.x)
        if min(b.x - a.x for a, b in pairwise(ordered)) < MIN_OFFSET / 2:
            return None
        answer = ", ".join(say_object(item) for item in ordered)
        return answer, tuple(_mention(item) for item in ordered)
    index = extreme([-item.size_ratio for item in objects], SIZE_MARGIN)
    if index is None:
        return None
    largest = objects[index]
    answer = f"several shapes, the largest is {with_article(f'{largest.colour} {largest.shape}')}"
    singled_out = Mention(colour=largest.colour, shape=largest.shape, role="largest")
    return answer, (Mention(number="several"), singled_out)


def _placed(item: SceneObject) -> tuple[str, Mention] | None:
    place = region(item)
    if place is None:
        return None
    return f"{say_object(item)} {place_phrase(place)}", _mention(item, place=place_name(place))


def _pair(a: SceneObject, b: SceneObject) -> tuple[str, tuple[Mention, ...]] | None:
    dx, dy = b.x - a.x, b.y - a.y
    if abs(abs(dx) - abs(dy)) < MIN_OFFSET:
        return None
    if abs(dx) > abs(dy):
        first, second = (a, b) if dx > 0 else (b, a)
        answer, side = f"{say_object(first)} to the left of {say_object(second)}", "left"
    else:
        first, second = (a, b) if dy > 0 else (b, a)
        answer, side = f"{say_object(first)} above {say_object(second)}", "above"
    return answer, (_mention(first, relation=side), _mention(second))


def _mention(
    item: SceneObject, *, place: str | None = None, relation: str | None = None
) -> Mention:
    return Mention(
        size=item.size, colour=item.colour, shape=item.shape, place=place, relation=relation
    )


def _answers(answer: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((answer, answer.replace("gray", "grey"))))
