"""Questions about single attributes: existence, count, colour, shape and size."""

from __future__ import annotations

from random import Random

from allrounder.demo.facts import denoted, unique_descriptions
from allrounder.demo.scenes import COLOURS, SHAPES, SIZES, Scene
from allrounder.demo.wording import (
    Attributes,
    Phrase,
    Question,
    colour_answers,
    compose,
    noun_phrase,
    number_answers,
    with_article,
)

EXIST = (
    "is there {one}",
    "is there {one} in the {image}",
    "can you see {one}",
    "do you see {one} in this {image}",
    "does the {image} contain {one}",
    "does the {image} show {one}",
    "are there any {many}",
)
EXIST_SINGLE = ("is this {one}", "is it {one}", "is the shape {one}")
COUNT = (
    "how many {many} are there",
    "how many {many} can you see",
    "how many {many} are in the {image}",
    "how many {many} does the {image} show",
    "count the {many}",
    "what is the number of {many}",
)
COLOUR = (
    "what {colour} is the {np}",
    "which {colour} is the {np}",
    "what {colour} does the {np} have",
    "what is the {colour} of the {np}",
    "tell me the {colour} of the {np}",
)
COLOUR_SINGLE = ("what {colour} is {it}", "which {colour} is {it}", "what is the {colour} of {it}")
SHAPE = (
    "what shape is the {np}",
    "which shape is the {np}",
    "what kind of shape is the {np}",
    "what is the shape of the {np}",
    "what shape does the {np} have",
)
SHAPE_SINGLE = (
    "what shape is {it}",
    "what is {it}",
    "which shape is {it}",
    "what {shape} is shown",
    "what {shape} is in the {image}",
    "what {shape} can you see",
    "name the {shape}",
)
SIZE = (
    "is the {np} small or large",
    "is the {np} large or small",
    "what size is the {np}",
    "how big is the {np}",
    "what is the size of the {np}",
)
SIZE_YES_NO = ("is the {np} {size}",)
SIZE_ANSWERS = {"small": ("small", "little"), "large": ("large", "big")}
YES, NO = ("yes",), ("no",)


def ask_exist(scene: Scene, rng: Random) -> Question | None:
    positive = rng.random() < 0.5
    pattern = rng.choices(("cs", "zcs", "c", "s", "zs", "zc"), (0.5, 0.2, 0.12, 0.1, 0.04, 0.04))[0]
    for _ in range(30):
        mixed = [rng.choice(scene.objects) for _ in range(3)]
        if positive:
            mixed = [mixed[0]] * 3
        invent = not positive and (len(scene.objects) == 1 or rng.random() < 0.35)
        colour = rng.choice(COLOURS) if invent and rng.random() < 0.6 else mixed[0].colour
        shape = rng.choice(SHAPES) if invent and rng.random() < 0.6 else mixed[1].shape
        size = mixed[2].size if positive else rng.choice(SIZES)
        attributes = Attributes(
            colour=colour if "c" in pattern else None,
            shape=shape if "s" in pattern else None,
            size=size if "z" in pattern else None,
        )
        found = denoted(scene, attributes)
        if bool(found) == positive:
            single = len(scene.objects) == 1 and attributes.shape is not None
            templates = EXIST + EXIST_SINGLE if single else EXIST
            return _existence(rng, attributes, found, templates)
    return None


def _existence(
    rng: Random, attributes: Attributes, found: tuple[int, ...], templates: tuple[str, ...]
) -> Question:
    slots = {
        "one": Phrase(with_article(noun_phrase(rng, attributes)), found),
        "many": Phrase(noun_phrase(rng, attributes, plural=True), found),
    }
    return compose(rng, "exist", templates, YES if found else NO, slots)


def ask_count(scene: Scene, rng: Random) -> Question | None:
    item = rng.choice(scene.objects)
    absent = rng.random() < 0.15
    colour = rng.choice(COLOURS) if absent else item.colour
    shape = rng.choice(SHAPES) if absent else item.shape
    attributes = rng.choices(
        (
            Attributes(colour=colour),
            Attributes(shape=shape),
            Attributes(colour=colour, shape=shape),
            Attributes(size=item.size),
            Attributes(),
        ),
        (0.35, 0.35, 0.1, 0.1, 0.1),
    )[0]
    found = denoted(scene, attributes)
    answers = number_answers(len(found)) if found else ("0", "zero", "none")
    many = Phrase(noun_phrase(rng, attributes, plural=True), found)
    return compose(rng, "count", COUNT, answers, {"many": many})


def ask_colour(scene: Scene, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.objects))
    answers = colour_answers(scene.objects[index].colour)
    if len(scene.objects) == 1 and rng.random() < 0.4:
        return compose(rng, "colour", COLOUR_SINGLE, answers, {"it": _deictic(rng)})
    slot = _unique(scene, rng, index, hide="colour")
    return None if slot is None else compose(rng, "colour", COLOUR, answers, {"np": slot})


def ask_shape(scene: Scene, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.objects))
    shape = scene.objects[index].shape
    if len(scene.objects) == 1 and rng.random() < 0.5:
        slots = {"it": _deictic(rng), "shape": Phrase(rng.choice(("shape", "object")), (0,))}
        answers = (shape, with_article(shape))
        return compose(rng, "shape", SHAPE_SINGLE, answers, slots)
    slot = _unique(scene, rng, index, hide="shape")
    if slot is None:
        return None
    return compose(rng, "shape", SHAPE, (shape, with_article(shape)), {"np": slot})


def ask_size(scene: Scene, rng: Random) -> Question | None:
    index = rng.randrange(len(scene.objects))
    size = scene.objects[index].size
    slot = _unique(scene, rng, index, hide="size")
    if slot is None:
        return None
    if rng.random() < 0.7:
        return compose(rng, "size", SIZE, SIZE_ANSWERS[size], {"np": slot})
    asked = rng.choice(SIZES)
    answers = YES if asked == size else NO
    word = rng.choice(SIZE_ANSWERS[asked])
    return compose(rng, "size", SIZE_YES_NO, answers, {"np": slot, "size": word})


def _deictic(rng: Random) -> Phrase:
    return Phrase(rng.choice(("this", "it", "the shape", "the object", "this shape")), (0,))


def _unique(scene: Scene, rng: Random, index: int, *, hide: str) -> Phrase | None:
    choices = list(unique_descriptions(scene, index, hide=hide))
    if not choices:
        return None
    return Phrase(noun_phrase(rng, rng.choice(choices)), (index,))
