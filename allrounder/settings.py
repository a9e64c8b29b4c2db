"""What a loaded model and its engine are set to: environment `ALLROUNDER_<NAME>`, or by argument.

Built once, frozen, passed down. A field's description is its only documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "ALLROUNDER_"

_PACKAGE = Path(__file__).parent


def default_router_folder() -> Path:
    """Routers lie in the installed package, and in a checkout beside it."""
    packaged = _PACKAGE / "router_weights"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "router_weights"


class EngineSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        # One alias from the command line and another from the environment are not a mistake.
        extra="ignore",
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )

    model: str = Field(
        default="demo",
        min_length=1,
        description="The word demo, a local transformers folder, random:<shape> (random weights of "
        "a named shape, for benchmarks), or, if allowed, a hub id.",
    )
    router_dir: Path = Field(
        default_factory=default_router_folder,
        description="Folder with one subfolder of router weights per model.",
    )
    quality_margin: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="Standard errors by which the loyalty measured in calibration must exceed a "
        "budget's quality; 0 takes the mean at its word.",
    )
    split_by: Literal["kl", "loyalty"] = Field(
        default="kl",
        description="What the router's calibration splits a share of FLOPs by: the least mean KL, "
        "or the most loyalty.",
    )
    allow_hub: bool = Field(
        default=False,
        description="Whether a hub id may be downloaded at start; no access otherwise.",
    )
    device: str = Field(
        default="auto", description="auto, cpu, cuda or cuda:<n>; auto takes a GPU if any."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format of the weights; auto: float32 on CPU, bfloat16 on CUDA.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads for computation; default: the library's own.",
    )
    kv_bytes_limit: int = Field(
        default=4 * 2**30,
        ge=2**20,
        description="Bytes that keys and values of all requests may hold.",
    )
    encoder_cache_bytes: int = Field(
        default=256 * 2**20,
        ge=0,
        description="Bytes of encoded images kept for further questions about them; 0: none.",
    )
    max_step_rows: int = Field(
        default=2048,
        ge=64,
        le=2**20,
        description="Rows of one forward pass; a longer prompt is computed in parts between "
        "the tokens of running answers.",
    )
    max_running: int = Field(
        default=16, ge=1, le=4096, description="Requests that are computed at the same time."
    )
    max_queue: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="Requests that may wait; the next one gets a 429.",
    )
