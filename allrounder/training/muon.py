"""Muon for many small matrices: equal shapes are orthogonalised together, in float32.

torch.optim.Muon takes one matrix at a time and computes in bfloat16, which CPUs emulate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class BatchedMuon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; steps are scaled by sqrt(max(1, rows / columns)).

    Paper: https://kellerjordan.github.io/posts/muon/
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for params in _by_shape(group["params"]):
                self._step_shape(params, group)
        return loss

    def _step_shape(self, params: list[Tensor], group: dict[str, Any]) -> None:
        rows, columns = params[0].shape
        update = orthogonalise(torch.stack([self._momentum(p, group["momentum"]) for p in params]))
        scale = max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(update.unbind(0)), alpha=-group["lr"] * scale)

    def _momentum(self, param: Tensor, momentum: float) -> Tensor:
        assert param.grad is not None
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum"]
        buffer.mul_(momentum).add_(param.grad)
        return param.grad + momentum * buffer


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push all singular values of each matrix [n, rows, columns] towards one."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    flat = matrices.mT if tall else matrices
    x: Tensor = flat / (flat.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _by_shape(params: Iterable[Tensor]) -> list[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            shapes.setdefault(param.shape, []).append(param)
    return list(shapes.values())
