"""What a strategy may see of the vision tower.

Shapes: V visual tokens, H heads, E width of all keys, F width of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VisionFeatures:
    """What a layer of the vision tower shows of each visual token; line ends of a picture are zero.

    Attributes:
        attention_HV: how much the class token attends to each token or, in towers without one, how
            much all patches do on average.
        keys_VE: that layer's keys, all heads side by side.
        features_VF: patch features before the projector.
    """

    attention_HV: Tensor
    keys_VE: Tensor
    features_VF: Tensor

    def part(self, start: int, stop: int) -> VisionFeatures:
        """The tokens from `start` to before `stop`."""
        return VisionFeatures(
            attention_HV=self.attention_HV[:, start:stop],
            keys_VE=self.keys_VE[start:stop],
            features_VF=self.features_VF[start:stop],
        )

    @property
    def head_keys(self) -> Tensor:
        """Keys averaged over the heads: V x head width."""
        num_heads = len(self.attention_HV)
        keys_VHE: Tensor = self.keys_VE.float().unflatten(-1, (num_heads, -1))
        return keys_VHE.mean(-2)
