"""Least-squares smoothing of a measured grid whose direction along both axes is known.

Shapes: a grid G has R rows and C columns; N values of one line.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MAX_SWEEPS = 1000
_TOLERANCE = 1e-9


def isotonic_grid(values_RC: Tensor) -> Tensor:
    """The nearest grid (least squares) that never falls along a row and never rises down a column.

    Isotonic regression of rows and of columns in turn, by Dykstra's projections, which end at the
    joint regression (Dykstra and Robertson, Annals of Statistics 1982).
    """
    grid_RC = values_RC.double()
    by_rows_RC, by_columns_RC = torch.zeros_like(grid_RC), torch.zeros_like(grid_RC)
    for _ in range(_MAX_SWEEPS):
        before_RC = grid_RC
        rows_RC = isotonic(grid_RC + by_rows_RC)
        by_rows_RC = grid_RC + by_rows_RC - rows_RC
        grid_RC = isotonic((rows_RC + by_columns_RC).T.flip(1)).flip(1).T
        by_columns_RC = rows_RC + by_columns_RC - grid_RC
        if (grid_RC - before_RC).abs().max() < _TOLERANCE:
            break
    # What is left of the sweeps' tolerance would be steps in the wrong direction.
    return grid_RC.cummax(dim=1).values.flip(0).cummax(dim=0).values.flip(0)


def isotonic(lines_RN: Tensor) -> Tensor:
    """Each line's nearest never-falling line: max over starts of min over ends of block means."""
    num = lines_RN.shape[1]
    sums_RN = torch.nn.functional.pad(lines_RN.cumsum(1), (1, 0))
    starts_N, ends_N = torch.arange(num)[:, None], torch.arange(num)[None]
    sizes_NN = (ends_N - starts_N + 1).to(lines_RN)
    means_RNN = (sums_RN[:, None, 1:] - sums_RN[:, :-1, None]) / sizes_NN.clamp(min=1)
    open_RNN = means_RNN.masked_fill(ends_N < starts_N, math.inf)
    least_RNN = open_RNN.flip(2).cummin(dim=2).values.flip(2)
    return least_RNN.masked_fill(ends_N < starts_N, -math.inf).amax(dim=1)
