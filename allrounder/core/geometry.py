"""Nouns of a frozen LVLM and its prompt."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionGeometry:
    """Widths of a vision tower where strategies look at it; `key_width` is that of all heads.

    Attributes:
        has_class: whether a class token looks at the patches; else all patches look at each other.
    """

    num_heads: int
    key_width: int
    feature_width: int
    has_class: bool

    def look_flops(self, num_patches: int) -> int:
        """q.k products recomputed for one tile of so many patches."""
        rows = num_patches + self.has_class
        return 2 * (1 if self.has_class else rows) * rows * self.key_width


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGeometry:
    """The decoder's shape: all that cost arithmetic and budget allocation need to know of it.

    Attributes:
        mlp_width: inner width of the gated MLP, which has three matrices.
        bytes_per_value: size of one stored key or value element.
        protected_layers: layers that no plan may skip.
        vision: the tower's widths, where strategies can look at it.
    """

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    max_positions: int
    bytes_per_value: int = 4
    protected_layers: frozenset[int] = frozenset()
    vision: VisionGeometry | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """One decoded image: `rgb` holds height * width * 3 bytes, row by row; `digest` is theirs."""

    width: int
    height: int
    rgb: bytes = field(repr=False)
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptShape:
    """How many rows a prompt has: text rows, and visual rows per image before pruning.

    Attributes:
        num_question: those text rows that follow the last image.
        num_earlier: text rows before it that are read as the question too.
    """

    num_text: int
    visual_per_image: tuple[int, ...]
    num_question: int = 0
    num_earlier: int = 0

    @property
    def num_read(self) -> int:
        """Text rows that the router, and strategies that read, are given."""
        return self.num_question + self.num_earlier

    @property
    def num_visual(self) -> int:
        return sum(self.visual_per_image)

    @property
    def num_rows(self) -> int:
        return self.num_text + self.num_visual


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Token ids with image ids at the visual slots.

    Attributes:
        visual_slots: (start, count) of each run of image ids, ascending; an image whose tiles are
            set apart by text has several.
        visual_per_image: visual tokens of each image.
        question_slot: (start, count) of the text that follows the last image: the question
            and the assistant's tag, which attention-based strategies and the router read.
        earlier_slots: (start, count) of what the user last said, where none of it follows the
            last image; the router reads it before the question slot.
    """

    token_ids: tuple[int, ...]
    visual_slots: tuple[tuple[int, int], ...]
    visual_per_image: tuple[int, ...]
    question_slot: tuple[int, int]
    earlier_slots: tuple[tuple[int, int], ...] = ()

    @property
    def shape(self) -> PromptShape:
        return PromptShape(
            num_text=len(self.token_ids) - sum(self.visual_per_image),
            visual_per_image=self.visual_per_image,
            num_question=self.question_slot[1],
            num_earlier=sum(count for _, count in self.earlier_slots),
        )

    @property
    def read_ids(self) -> tuple[int, ...]:
        """Ids of the rows that are read as the question, in the prompt's order."""
        slots = (*self.earlier_slots, self.question_slot)
        return tuple(
            token_id for start, count in slots for token_id in self.token_ids[start : start + count]
        )

    @property
    def visual_rows(self) -> tuple[int, ...]:
        """Row of each visual token, ascending."""
        return tuple(
            row for start, count in self.visual_slots for row in range(start, start + count)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenGrid:
    """The grid of visual tokens that shows one whole image, row by row.

    Attributes:
        offset: index of its first token among the image's visual tokens; those outside the grid
            show tiles in more detail, or are a class token or ends of rows.
        area: what the grid shows, as left, top, width and height in shares of the image's own
            width and height; less than all of it where the processor crops.
    """

    rows: int
    cols: int
    offset: int = 0
    area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLayout:
    """How one image stands in the prompt.

    Attributes:
        placeholder: what takes the place of the chat template's image token.
        runs: visual tokens that each image token in `placeholder` stands for, in order.
        tiles: patches of each tile that the vision tower sees, its class token not counted.
    """

    grid: TokenGrid
    placeholder: str
    runs: tuple[int, ...]
    tiles: tuple[int, ...] = ()

    @property
    def num_visual(self) -> int:
        return sum(self.runs)
