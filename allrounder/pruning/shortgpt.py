"""ShortGPT: always skip the layers whose output differs least from their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from allrounder.pruning.strategy import Context, Strategy, View, refuse


@dataclass(frozen=True, kw_only=True)
class ShortGPT(Strategy):
    """Block Influence (arXiv 2403.03853, section 3.2): static, measured once on calibration data.

    The influence of every layer lies in the manifest beside the router's weights.
    """

    name: ClassVar[str] = "shortgpt"
    prunes_layers: ClassVar[bool] = True

    def check(self, context: Context) -> None:
        if context.block_influence is None:
            raise refuse("strategy", "shortgpt needs a calibrated model; this one has none")

    def candidates(self, context: Context) -> tuple[int, ...]:
        return tuple(range(1, context.geometry.num_layers))

    def skip(self, view: View, allowed: tuple[int, ...], count: int) -> tuple[int, ...]:
        influence = view.context.block_influence
        assert influence is not None, "check() refuses an uncalibrated model"
        return tuple(sorted(sorted(allowed, key=lambda idx: (influence[idx], idx))[:count]))
