"""From the `model` setting to an adapter: embedded, a local folder, random weights, or a hub id.

No remote code and no pickles, ever; the hub only when the operator allows it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from allrounder.errors import ModelUnsupported
from allrounder.models.families import family_of
from allrounder.models.processors import load_processor
from allrounder.models.shapes import PREFIX as RANDOM
from allrounder.models.shapes import Shape, build, shape_named
from allrounder.models.transformers import TransformersAdapter

EMBEDDED = "demo"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "demo" / "weights"
_WHOLE_FILE_BYTES = 1 << 28
_SAMPLE_BYTES = 1 << 16
_NUM_SAMPLES = 256


def load_adapter(
    model: str, *, device: str = "auto", dtype: str = "auto", allow_hub: bool = False
) -> TransformersAdapter:
    """Load a frozen LVLM.

    Args:
        model: `demo`, a folder written by `save_pretrained`, `random:<shape>`, or a hub id.
        device: `auto` (CUDA when present), `cpu` or `cuda[:n]`.
        dtype: `auto` (float32 on CPU, bfloat16 on CUDA) or a torch dtype's name.
    Raises:
        ModelUnsupported: no such folder or shape, an unknown architecture, attention that is not
            full causal, or the hub is not allowed.
    """
    disable_progress_bar()
    place = _device(device)
    if model.startswith(RANDOM):
        shape = model.removeprefix(RANDOM)
        return random_adapter(
            shape_named(shape), name=f"random-{shape}", device=place, dtype=_dtype(dtype, place)
        )
    name, source = _locate(model, allow_hub=allow_hub)
    local = {"local_files_only": not allow_hub, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **local)
    family = family_of(config.model_type)
    _check_attention(config.get_text_config(decoder=True))
    loaded = AutoModelForImageTextToText.from_pretrained(
        source, config=config, dtype=_dtype(dtype, place), use_safetensors=True, **local
    )
    processor = load_processor(source, config, **local)
    return TransformersAdapter(
        name=name,
        model=loaded.to(place),
        processor=processor,
        family=family,
        fingerprint=fingerprint(Path(source)) if Path(source).is_dir() else f"hub:{source}",
    )


def random_adapter(
    shape: Shape, *, name: str, device: torch.device, dtype: torch.dtype
) -> TransformersAdapter:
    """Random weights of a shape; its fingerprint says what they depend on."""
    config = shape.config()
    family = family_of(config.model_type)
    model, processor = build(shape, device=device, dtype=dtype)
    return TransformersAdapter(
        name=name,
        model=model,
        processor=processor,
        family=family,
        fingerprint=f"{name}:{device.type}:{str(dtype).removeprefix('torch.')}",
    )


def fingerprint(folder: Path) -> str:
    """A digest of a model folder's safetensors: whole when small, evenly sampled when large."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(file.read())
                continue
            for idx in range(_NUM_SAMPLES):
                file.seek(idx * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _locate(model: str, *, allow_hub: bool) -> tuple[str, str]:
    if model == EMBEDDED:
        return EMBEDDED, str(EMBEDDED_FOLDER)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve().name, str(folder)
    if not allow_hub:
        raise ModelUnsupported(
            f"model {model!r} is no local folder; give a folder, 'demo', or allow hub access"
        )
    return model.rsplit("/", 1)[-1], model


def _check_attention(config: Any) -> None:
    """The engine attends to all earlier rows; a window would be silently ignored."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        window = getattr(config, "sliding_window", None)
        is_narrow = window is not None and window < config.max_position_embeddings
        kinds = ["sliding_attention" if is_narrow else "full_attention"]
    others = sorted({kind.replace("_", "-") for kind in kinds} - {"full-attention"})
    if others:
        names = ", ".join(others).replace("sliding-attention", "sliding-window attention")
        raise ModelUnsupported(f"decoder layers with {names} are not supported; only full causal")


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    resolved: Any = getattr(torch, dtype, None)
    if not isinstance(resolved, torch.dtype):
        raise ModelUnsupported(f"dtype {dtype!r} is no torch dtype")
    return resolved
