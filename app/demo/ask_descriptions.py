"""Questions answered in five to twelve words: an object, its neighbour, or the whole picture."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from app.demo.facts import extreme, place_phrase, region, unique_descriptions
from app.demo.scenes import Scene, SceneObject
from app.demo.wording import Phrase, Question, compose, noun_phrase, with_article

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
PICTURE = (
    "describe the {image}",
    "describe this {image}",
    "what is in the {image}",
    "what does the {image} show",
    "what do you see",
    "what can you see in the {image}",
)
SUPERLATIVES = {"largest": -1, "biggest": -1, "smallest": 1}


def ask_describe(scene: Scene, rng: Random) -> Question | None:
    kind = rng.choices((_object, _superlative, _neighbour, _picture), (0.25, 0.2, 0.25, 0.3))[0]
    return kind(scene, rng)


def say_object(item: SceneObject) -> str:
    return with_article(f"{item.size} {item.colour} {item.shape}")


def _object(scene: Scene, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.objects))
    choices = list(unique_descriptions(scene, index))
    if not choices:
        return None
    return _describe(scene, rng, index, noun_phrase(rng, rng.choice(choices)))


def _superlative(scene: Scene, rng: Random) -> Question | None:
    word, sign = rng.choice(list(SUPERLATIVES.items()))
    index = extreme([sign * item.size_ratio for item in scene.objects], SIZE_MARGIN)
    if index is None or len(scene.objects) < 2:
        return None
    return _describe(scene, rng, index, f"{word} {rng.choice(('shape', 'object', 'thing'))}")


def _describe(scene: Scene, rng: Random, index: int, words: str) -> Question | None:
    place = region(scene.objects[index])
    if place is None:
        return None
    answer = f"{say_object(scene.objects[index])} {place_phrase(place)}"
    return compose(rng, "describe", OBJECT, _answers(answer), {"np": Phrase(words, (index,))})


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
    if abs(dx) > abs(dy):
        place = "to its left" if dx < 0 else "to its right"
    else:
        place = "above it" if dy < 0 else "below it"
    slot = Phrase(noun_phrase(rng, rng.choice(choices)), (index, near))
    answer = f"{say_object(there)} {place}"
    return compose(rng, "describe", NEIGHBOUR, _answers(answer), {"np": slot})


def _nearest(scene: Scene, index: int) -> int | None:
    here = scene.objects[index]
    others = [i for i in range(len(scene.objects)) if i != index]
    distances = [
        ((scene.objects[i].x - here.x) ** 2 + (scene.objects[i].y - here.y) ** 2) ** 0.5
        for i in others
    ]
    best = extreme(distances, MIN_OFFSET)
    return None if best is None else others[best]


def _picture(scene: Scene, rng: Random) -> Question | None:
    answer = _summary(scene)
    if answer is None:
        return None
    everything = tuple(range(len(scene.objects)))
    question = compose(rng, "describe", PICTURE, _answers(answer), {})
    return Question(
        type=question.type,
        text=question.text,
        answers=question.answers,
        objects=everything,
        phrases=(),
    )


def _summary(scene: Scene) -> str | None:
    objects = scene.objects
    if len(objects) == 1:
        place = region(objects[0])
        return None if place is None else f"{say_object(objects[0])} {place_phrase(place)}"
    if len(objects) == 2:
        return _pair(objects[0], objects[1])
    if len(objects) == 3:
        ordered = sorted(objects, key=lambda item: item.x)
        if min(b.x - a.x for a, b in pairwise(ordered)) < MIN_OFFSET / 2:
            return None
        return ", ".join(say_object(item) for item in ordered)
    index = extreme([-item.size_ratio for item in objects], SIZE_MARGIN)
    if index is None:
        return None
    largest = objects[index]
    return f"several shapes, the largest is {with_article(f'{largest.colour} {largest.shape}')}"


def _pair(a: SceneObject, b: SceneObject) -> str | None:
    dx, dy = b.x - a.x, b.y - a.y
    if abs(abs(dx) - abs(dy)) < MIN_OFFSET:
        return None
    if abs(dx) > abs(dy):
        left, right = (a, b) if dx > 0 else (b, a)
        return f"{say_object(left)} to the left of {say_object(right)}"
    upper, lower = (a, b) if dy > 0 else (b, a)
    return f"{say_object(upper)} above {say_object(lower)}"


def _answers(answer: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((answer, answer.replace("gray", "grey"))))
