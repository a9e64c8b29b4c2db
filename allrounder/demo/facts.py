"""What holds in a scene: which objects a description denotes, and how their places are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from allrounder.demo.scenes import Scene, SceneObject
from allrounder.demo.wording import Attributes

THIRDS = (1 / 3, 2 / 3)
# Objects this near to the border between two regions are not asked about.
REGION_MARGIN = 0.025
VERTICAL = ("top", "middle", "bottom")
HORIZONTAL = ("left", "center", "right")


def denoted(scene: Scene, attributes: Attributes) -> tuple[int, ...]:
    """Indexes of the objects that fit the description."""
    return tuple(i for i, item in enumerate(scene.objects) if fits(item, attributes))


def fits(item: SceneObject, attributes: Attributes) -> bool:
    return (
        attributes.colour in (None, item.colour)
        and attributes.shape in (None, item.shape)
        and attributes.size in (None, item.size)
    )


def unique_descriptions(
    scene: Scene, index: int, *, hide: str | None = None
) -> Iterator[Attributes]:
    """Shortest-first descriptions that denote only this object and do not mention `hide`."""
    item = scene.objects[index]
    colour, shape, size = item.colour, item.shape, item.size
    for attributes in (
        Attributes(shape=shape),
        Attributes(colour=colour),
        Attributes(colour=colour, shape=shape),
        Attributes(size=size, shape=shape),
        Attributes(size=size, colour=colour),
        Attributes(size=size, colour=colour, shape=shape),
    ):
        if hide is not None and getattr(attributes, hide) is not None:
            continue
        if denoted(scene, attributes) == (index,):
            yield attributes


def region(item: SceneObject) -> tuple[int, int] | None:
    """Third of the height and of the width (0, 1 or 2 each), None when too near to a border."""
    row, column = _third(item.y), _third(item.x)
    return None if row is None or column is None else (row, column)


def place_answers(place: tuple[int, int]) -> tuple[str, ...]:
    """Short names of a region, the preferred one first."""
    row, column = place
    if place == (1, 1):
        return ("center", "centre", "middle", "the center", "the centre", "in the center")
    if row == 1:
        return (HORIZONTAL[column], f"middle {HORIZONTAL[column]}", f"{HORIZONTAL[column]} side")
    if column == 1:
        return (VERTICAL[row], f"{VERTICAL[row]} center", f"{VERTICAL[row]} middle")
    upper = ("upper", "", "lower")[row]
    side = HORIZONTAL[column]
    return (f"{VERTICAL[row]} {side}", f"{upper} {side}", f"{VERTICAL[row]} {side} corner")


def place_phrase(place: tuple[int, int]) -> str:
    """ "in the top left corner", "at the top", "on the left", "in the center"."""
    row, column = place
    if place == (1, 1):
        return "in the center"
    if row == 1:
        return f"on the {HORIZONTAL[column]}"
    if column == 1:
        return f"at the {VERTICAL[row]}"
    return f"in the {VERTICAL[row]} {HORIZONTAL[column]} corner"


def place_name(place: tuple[int, int]) -> str:
    """Its one name among all wordings: "top left", "top", "left", "center"."""
    row, column = place
    words = [VERTICAL[row]] * (row != 1) + [HORIZONTAL[column]] * (column != 1)
    return " ".join(words) or "center"


def extreme(values: Sequence[float], margin: float) -> int | None:
    """Index of the smallest value if it is the smallest by a margin."""
    order = sorted(range(len(values)), key=values.__getitem__)
    if not order or (len(order) > 1 and values[order[1]] - values[order[0]] < margin):
        return None
    return order[0]


def _third(value: float) -> int | None:
    if any(abs(value - border) < REGION_MARGIN for border in THIRDS):
        return None
    return sum(value > border for border in THIRDS)
