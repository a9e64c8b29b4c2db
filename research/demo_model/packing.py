"""Many questions about one image in one row: one image prefix, and questions that are apart.

Text is laid out in blocks of 64 tokens that no question crosses, so a text token attends to the
image and to its own block only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.demo_model.tokens import TokenisedQuestion

BLOCK = 64
EOS_WEIGHT = 0.5


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Text of a batch [rows, length], the block mask, and what is to be predicted where.

    `positions` count from the end of the image; targets, nouns and lasts are (row, column) pairs.
    `grounded_on` are the patches of the objects that each of those denotes, `grounded_centres` the
    one patch in the middle of each object.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    target_at: Tensor
    target_ids: Tensor
    target_weights: Tensor
    target_question: Tensor
    questions: tuple[TokenisedQuestion, ...]
    grounded_at: Tensor
    grounded_on: Tensor
    grounded_centres: Tensor
    grounded_last: Tensor


def pack(
    rows: Sequence[Sequence[TokenisedQuestion]],
    marks: Sequence[NDArray[np.bool_]],
    *,
    max_blocks: int | None = None,
) -> Packed:
    """Lay out each row's questions; those that find no room in `max_blocks` blocks are left out.

    `marks` are object_marks of each row's scene.
    """
    layouts = [_place_questions(row, max_blocks) for row in rows]
    used = max((start // BLOCK + 1 for layout in layouts for start, _ in layout), default=1)
    writer = _Writer(len(rows), used)
    for index, layout in enumerate(layouts):
        for segment, (start, item) in enumerate(layout):
            writer.write(index, start, segment, item, marks[index])
    return writer.finish()


def _place_questions(
    questions: Sequence[TokenisedQuestion], max_blocks: int | None
) -> list[tuple[int, TokenisedQuestion]]:
    """First fit: (start, question) pairs."""
    free: list[int] = []
    placed = []
    for item in questions:
        length = len(item.prompt) + len(item.answer)
        assert length <= BLOCK, f"a question of {length} tokens, the block holds {BLOCK}"
        block = next((b for b, room in enumerate(free) if room >= length), len(free))
        if block == len(free):
            if block == max_blocks:
                continue
            free.append(BLOCK)
        placed.append((block * BLOCK + BLOCK - free[block], item))
        free[block] -= length
    return placed


class _Writer:
    """Collects the arrays of one batch."""

    def __init__(self, num_rows: int, num_blocks: int) -> None:
        shape = (num_rows, num_blocks * BLOCK)
        self.tokens = np.zeros(shape, np.int64)
        self.segments = np.full(shape, -1, np.int64)
        self.positions = np.zeros(shape, np.int64)
        self.targets: list[tuple[int, int, int, float, int]] = []
        self.questions: list[TokenisedQuestion] = []
        self.grounded: list[tuple[int, int, bool]] = []
        self.grounded_on: list[NDArray[np.bool_]] = []

    def write(
        self,
        row: int,
        start: int,
        segment: int,
        item: TokenisedQuestion,
        marks: NDArray[np.bool_],
    ) -> None:
        ids = item.prompt + item.answer
        span = slice(start, start + len(ids))
        self.tokens[row, span] = ids
        self.segments[row, span] = segment
        self.positions[row, span] = np.arange(len(ids))
        last = start + len(item.prompt) - 1
        weight = (len(item.answer) - 1) ** -0.5
        for offset, token in enumerate(item.answer):
            final = offset == len(item.answer) - 1
            kind = EOS_WEIGHT * weight if final else weight
            self.targets.append((row, last + offset, token, kind, len(self.questions)))
        self.questions.append(item)
        for phrase, noun in zip(item.question.phrases, item.nouns, strict=True):
            self._ground(row, start + noun, marks, phrase.objects, last=False)
        self._ground(row, last, marks, item.question.objects, last=True)

    def _ground(
        self,
        row: int,
        column: int,
        marks: NDArray[np.bool_],
        objects: tuple[int, ...],
        *,
        last: bool,
    ) -> None:
        self.grounded.append((row, column, last))
        named: NDArray[np.bool_] = np.logical_or.reduce(marks[list(objects)], axis=0)
        self.grounded_on.append(named)

    def finish(self) -> Packed:
        rows, columns, ids, weights, owners = zip(*self.targets, strict=True)
        grounded = np.array(self.grounded)
        covers, centres = torch.from_numpy(np.array(self.grounded_on)).unbind(1)
        return Packed(
            tokens=torch.from_numpy(self.tokens),
            positions=torch.from_numpy(self.positions),
            mask=_block_mask(torch.from_numpy(self.segments)),
            target_at=torch.tensor([rows, columns]),
            target_ids=torch.tensor(ids),
            target_weights=torch.tensor(weights),
            target_question=torch.tensor(owners),
            questions=tuple(self.questions),
            grounded_at=torch.from_numpy(grounded[:, :2].T.copy()),
            grounded_on=covers,
            grounded_centres=centres,
            grounded_last=torch.from_numpy(grounded[:, 2].astype(bool)),
        )


def _block_mask(segments: Tensor) -> Tensor:
    """Additive mask [rows, 1, blocks, 64, 64]: earlier tokens of the same question, and oneself."""
    blocks = segments.view(len(segments), -1, BLOCK)
    same = blocks[..., :, None] == blocks[..., None, :]
    allowed = (same & torch.ones(BLOCK, BLOCK).tril().bool()) | torch.eye(BLOCK).bool()
    return torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))[:, None]
