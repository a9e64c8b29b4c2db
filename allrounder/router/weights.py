"""`router_weights/<model>/`: safetensors beside a manifest, checked before use.

A router that was trained for another model, or whose file was changed, is refused at start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from allrounder.core import ModelGeometry, PromptShape
from allrounder.errors import RouterMismatch
from allrounder.router.network import MetaRouter, RouterConfig, router_flops

WEIGHTS_NAME = "router.safetensors"
MANIFEST_NAME = "router.json"


Share = Annotated[float, Field(ge=0, le=1)]
TokenShare = Annotated[float, Field(gt=0, le=1)]
Shares = tuple[tuple[Share, ...], ...]


class Loyalty(BaseModel):
    """Share of samples whose whole greedy answer equals the dense one, per cell of the grid.

    Attributes:
        num_samples: how many questions were asked.
        mean: smoothed to be monotone along both axes.
        standard_error: of each cell as measured, by picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_samples: int = Field(ge=1)
    mean: Shares
    standard_error: Shares


class Calibration(BaseModel):
    """Measured on unlabelled data with the frozen model and this router's joint plans.

    Attributes:
        block_influence: 1 - cosine(input, output) per decoder layer (ShortGPT).
        skip_ratios, token_ratios: axes of the grid, ascending; one row per skip ratio.
        kl_nats: mean KL to the dense answer per cell.
        loyalty: None in calibrations made before it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    block_influence: tuple[float, ...]
    skip_ratios: tuple[Share, ...] = Field(min_length=1)
    token_ratios: tuple[TokenShare, ...] = Field(min_length=1)
    kl_nats: tuple[tuple[Annotated[float, Field(ge=0)], ...], ...]
    loyalty: Loyalty | None = None

    @model_validator(mode="after")
    def _check_grids(self) -> Self:
        for name, axis in (("skip_ratios", self.skip_ratios), ("token_ratios", self.token_ratios)):
            if any(left >= right for left, right in pairwise(axis)):
                raise ValueError(f"{name} must ascend")
        grids: dict[str, tuple[tuple[float, ...], ...]] = {"kl_nats": self.kl_nats}
        if self.loyalty is not None:
            grids["loyalty.mean"] = self.loyalty.mean
            grids["loyalty.standard_error"] = self.loyalty.standard_error
        shape = [len(self.token_ratios)] * len(self.skip_ratios)
        for name, grid in grids.items():
            if [len(row) for row in grid] != shape:
                raise ValueError(f"{name} must have {len(shape)} rows of {shape[0]} values")
        return self


class Manifest(BaseModel):
    """What is said of a router beside its weights.

    Attributes:
        fingerprint: of the LVLM it was trained on; another model's router is refused.
        sha256: of the weights file.
        training: facts of the run (data, options, measured losses), for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    model: str
    fingerprint: str
    geometry: dict[str, int]
    network: dict[str, Any]
    sha256: str
    training: dict[str, Any]
    calibration: Calibration | None = None


class LoadedRouter:
    """A checked router on its device."""

    def __init__(self, network: MetaRouter, manifest: Manifest) -> None:
        self._network = network.eval().requires_grad_(False)
        self.manifest = manifest
        self.identity = f"{manifest.model}@{manifest.sha256[:8]}"

    @property
    def candidates(self) -> tuple[int, ...]:
        return self._network.config.candidates

    @property
    def block_influence(self) -> tuple[float, ...] | None:
        calibration = self.manifest.calibration
        return calibration.block_influence if calibration else None

    def flops(self, shape: PromptShape) -> int:
        return router_flops(
            self._network.config, num_visual=shape.num_visual, num_question=shape.num_read
        )

    @torch.inference_mode()
    def score(self, visual_VD: Tensor, question_QD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the visual tokens (V) and of the candidate layers (N)."""
        tokens, layers = self._network(visual_VD[None].float(), question_QD[None].float())
        return tokens[0], layers[0]


def save_router(
    folder: Path,
    network: MetaRouter,
    *,
    model: str,
    fingerprint: str,
    geometry: ModelGeometry,
    training: Mapping[str, Any],
    calibration: Calibration | None,
) -> Manifest:
    """Write weights and manifest into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS_NAME
    save_file({k: v.detach().contiguous().cpu() for k, v in network.state_dict().items()}, weights)
    manifest = Manifest(
        model=model,
        fingerprint=fingerprint,
        geometry=_numbers(geometry),
        network=asdict(network.config),
        sha256=_sha256(weights),
        training=dict(training),
        calibration=calibration,
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def load_router(
    folder: Path, *, fingerprint: str, geometry: ModelGeometry, device: str = "cpu"
) -> LoadedRouter:
    """Load and check a router.

    Raises:
        RouterMismatch: the manifest cannot be read, the weights' digest differs, the router was
            trained for another model, or its tensors do not fit its own description.
    """
    manifest = _read_manifest(folder / MANIFEST_NAME)
    weights = folder / WEIGHTS_NAME
    if not weights.is_file() or _sha256(weights) != manifest.sha256:
        raise RouterMismatch(f"{weights} is missing or its sha256 differs from its manifest's")
    _check_fit(manifest, fingerprint=fingerprint, geometry=geometry)
    config = RouterConfig(
        **{**manifest.network, "candidates": tuple(manifest.network["candidates"])}
    )
    network = MetaRouter(config)
    try:
        network.load_state_dict(load_file(weights))
    except RuntimeError as err:
        raise RouterMismatch(f"the tensors of {weights} do not fit its manifest") from err
    return LoadedRouter(network.to(device), manifest)


def _check_fit(manifest: Manifest, *, fingerprint: str, geometry: ModelGeometry) -> None:
    expected = _numbers(geometry)
    differing = sorted(
        name for name in ("num_layers", "width") if manifest.geometry.get(name) != expected[name]
    )
    if differing:
        raise RouterMismatch(
            f"the router for {manifest.model!r} does not fit this model: {differing[0]} is "
            f"{manifest.geometry.get(differing[0])}, the model's is {expected[differing[0]]}"
        )
    calibration = manifest.calibration
    if calibration and len(calibration.block_influence) != geometry.num_layers:
        raise RouterMismatch(
            f"the router manifest has block_influence of {len(calibration.block_influence)} "
            f"layers, the model has {geometry.num_layers}"
        )
    if manifest.fingerprint != fingerprint:
        raise RouterMismatch(
            f"the router was trained on {manifest.model!r} with fingerprint "
            f"{manifest.fingerprint}, this model's is {fingerprint}; train one for this model"
        )


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError) as err:
        raise RouterMismatch(f"the router manifest {path} cannot be read") from err
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise RouterMismatch(
            f"{path} is no valid router manifest: {place}: {first['msg']}"
        ) from err


def _numbers(geometry: ModelGeometry) -> dict[str, int]:
    return {
        "num_layers": geometry.num_layers,
        "width": geometry.width,
        "num_heads": geometry.num_heads,
        "num_kv_heads": geometry.num_kv_heads,
        "mlp_width": geometry.mlp_width,
        "vocab_size": geometry.vocab_size,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
