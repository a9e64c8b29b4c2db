"""Average pooling on the token grid: the baseline of equal tokens that chooses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import sqrt
from typing import ClassVar

from allrounder.core import TokenGrid
from allrounder.pruning.per_image import PerImage, quotas
from allrounder.pruning.strategy import Choice, View


@dataclass(frozen=True, kw_only=True)
class Pool(PerImage):
    """The grid is cut into bands of rows, the bands into cells; each cell becomes its mean.

    Band and cell numbers follow the grid's proportions and differ by at most one from band to
    band, so exactly the count is left: a regular grid where the count allows one. A cell stands
    at the token in its middle. Tokens outside the grid, which show tiles row by row, are averaged
    in runs, with a share of the count in proportion.
    """

    name: ClassVar[str] = "pool"
    prunes_tokens: ClassVar[bool] = True

    @property
    def merges(self) -> bool:
        return True

    def choose_image(self, view: View, count: int) -> Choice:
        num_tokens = len(view.visual_VD)
        grid = view.grids[0] if view.grids else TokenGrid(rows=1, cols=num_tokens)
        end = grid.offset + grid.rows * grid.cols
        parts = (
            TokenGrid(rows=1, cols=grid.offset),
            grid,
            TokenGrid(rows=1, cols=num_tokens - end, offset=end),
        )
        shares = quotas([part.rows * part.cols for part in parts], count)
        middles: list[int] = []
        weights_KV = view.visual_VD.new_zeros(count, num_tokens).float()
        for part, share in zip(parts, shares, strict=True):
            for middle, members in cells(part, share):
                weights_KV[len(middles), members] = 1 / len(members)
                middles.append(middle)
        order = sorted(range(count), key=middles.__getitem__)
        rows = weights_KV.new_tensor([middles[idx] for idx in order]).long()
        return Choice(rows=rows, weights=weights_KV[order])


def cells(grid: TokenGrid, count: int) -> Iterator[tuple[int, list[int]]]:
    """The middle and the members of each of `count` cells of a grid of at least so many tokens."""
    if count == 0:
        return
    bands = _num_bands(grid, count)
    tops = [0, *accumulate(_even(grid.rows, bands))]
    for band, num_cells in enumerate(_even(count, bands)):
        rows = range(tops[band], tops[band + 1])
        lefts = [0, *accumulate(_even(grid.cols, num_cells))]
        for left, right in pairwise(lefts):
            cols = range(left, right)
            middle = _at(grid, (rows[0] + rows[-1]) // 2, (cols[0] + cols[-1]) // 2)
            yield middle, [_at(grid, row, col) for row in rows for col in cols]


def _num_bands(grid: TokenGrid, count: int) -> int:
    """The number with which cells are nearest to square, if each band has enough columns."""
    fewest = -(-count // grid.cols)
    wanted = round(sqrt(count * grid.rows / grid.cols))
    return max(fewest, min(wanted, grid.rows, count))


def _even(total: int, parts: int) -> list[int]:
    """`total` in `parts` that differ by at most one."""
    return [total * (idx + 1) // parts - total * idx // parts for idx in range(parts)]


def _at(grid: TokenGrid, row: int, col: int) -> int:
    return grid.offset + row * grid.cols + col
