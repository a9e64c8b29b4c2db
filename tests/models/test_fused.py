"""Fused layers: the same rows as the library's, the same memory, and only where they are equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from allrounder.models.fused import FusedLayer, Projection
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from tests.families.qwen import tiny_qwen2_5_vl_folder, tiny_qwen3_vl_folder
from tests.tiny import tiny_llava_folder


@pytest.fixture(
    scope="module",
    params=[tiny_llava_folder, tiny_qwen2_5_vl_folder, tiny_qwen3_vl_folder],
    ids=["plain", "biased", "head-norms"],
)
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TransformersAdapter:
    build: Callable[[Path], Path] = request.param
    return load_adapter(str(build(tmp_path_factory.mktemp("fused") / "model")), device="cpu")


def _attend(_: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Not attention, but it sees everything: order, heads and scale."""
    groups = query.shape[1] // key.shape[1]
    mixed = query.roll(1, 0) * scaling + key.repeat_interleave(groups, 1).cumsum(0)
    return (mixed * value.repeat_interleave(groups, 1).cos()).flatten(1)


@pytest.mark.parametrize("num_rows", [1, 2, 9, 40, 700])
def test_a_fused_layer_gives_the_rows_of_the_librarys(
    adapter: TransformersAdapter, num_rows: int
) -> None:
    rows_RD = torch.randn(num_rows, adapter.geometry.width)
    rotation = adapter.rotate(rows_RD, torch.arange(num_rows)[None] * 3)
    for layer_idx, layer in enumerate(adapter._layers):
        assert isinstance(layer, FusedLayer), "the check at load found it unequal"
        plain = adapter._plain_layers[layer_idx]
        expected = plain(rows_RD, rotation, _attend)
        given = rows_RD.clone()
        torch.testing.assert_close(layer(given, rotation, _attend), expected, atol=2e-4, rtol=1e-4)
        assert torch.equal(given, rows_RD), "its input is left as it was"


def test_a_layer_of_another_kind_stays_as_it_is(tmp_path: Path) -> None:
    folder = tiny_llava_folder(tmp_path / "gelu")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "silu"', '"hidden_act": "gelu"'))
    adapter = load_adapter(str(folder), device="cpu")
    assert not any(isinstance(layer, FusedLayer) for layer in adapter._layers)


def test_in_another_number_format_nothing_is_fused(tmp_path: Path) -> None:
    folder = tiny_llava_folder(tmp_path / "half")
    adapter = load_adapter(str(folder), device="cpu", dtype="bfloat16")
    assert not any(isinstance(layer, FusedLayer) for layer in adapter._layers)


def test_the_parts_become_views_of_the_whole() -> None:
    parts: list[Any] = [nn.Linear(4, size, bias=True) for size in (6, 2)]
    rows_RD = torch.randn(3, 4)
    expected = torch.cat([part(rows_RD) for part in parts], dim=1)
    whole = Projection(parts)
    torch.testing.assert_close(whole(rows_RD), expected)
    torch.testing.assert_close(torch.cat([part(rows_RD) for part in parts], dim=1), expected)
    assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
