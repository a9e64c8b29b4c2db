"""Resize: the picture itself is made smaller; the baseline that spends less on the tower too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from allrounder.pruning.strategy import Context, Strategy, refuse


@dataclass(frozen=True, kw_only=True)
class Resize(Strategy):
    """Each picture is scaled down until its tokens fit its share of the count.

    Everything behind is the dense model on fewer tokens. Only for families that give a smaller
    picture fewer tokens; what is reported as saved refers to the picture as it came.
    """

    name: ClassVar[str] = "resize"
    prunes_tokens: ClassVar[bool] = True
    resizes: ClassVar[bool] = True

    def check(self, context: Context) -> None:
        if context.fixed_visual is not None:
            raise refuse(
                "strategy",
                f"resize needs a model whose tokens depend on the size of the image; of this one "
                f"every image has {context.fixed_visual}",
            )
