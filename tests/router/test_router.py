"""The network's size and reach, and what a folder of router weights must be to be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from app.core import ModelGeometry
from app.errors import RouterMismatch
from app.router.model import MetaRouter, RouterConfig, router_flops
from app.router.store import MANIFEST_NAME, WEIGHTS_NAME, load_router, save_router

GEOMETRY = ModelGeometry(
    num_layers=8,
    width=32,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    mlp_width=64,
    vocab_size=50,
    max_positions=512,
)


def _network(seed: int = 0) -> MetaRouter:
    torch.manual_seed(seed)
    network = MetaRouter(RouterConfig.for_model(model_width=32, num_layers=8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network.eval()


def _saved(folder: Path, *, fingerprint: str = "f" * 16) -> Path:
    save_router(
        folder,
        _network(),
        model="tiny",
        fingerprint=fingerprint,
        geometry=GEOMETRY,
        training={"samples": 0},
        calibration=None,
    )
    return folder


def test_at_width_4096_it_has_about_40_million_parameters() -> None:
    with torch.device("meta"):
        router = MetaRouter(RouterConfig.for_model(model_width=4096, num_layers=32))
    total = sum(parameter.numel() for parameter in router.parameters())
    assert 38e6 < total < 42e6
    assert router.config.candidates == tuple(range(16, 32))


def test_the_question_reaches_every_score() -> None:
    network = _network()
    visual, question = torch.randn(1, 6, 32), torch.randn(1, 4, 32)
    tokens, layers = network(visual, question)
    other_tokens, other_layers = network(visual, question + 1)
    assert (tokens - other_tokens).abs().min() > 1e-6
    assert (layers - other_layers).abs().min() > 1e-6
    assert tokens.shape == (1, 6)
    assert layers.shape == (1, 4)


def test_padding_of_the_question_changes_nothing() -> None:
    network = _network()
    visual, question = torch.randn(2, 6, 32), torch.randn(2, 4, 32)
    padded = torch.cat([question, torch.randn(2, 3, 32)], dim=1)
    mask = torch.tensor([[True] * 4 + [False] * 3] * 2)
    tokens, _ = network(visual, question)
    masked_tokens, _ = network(visual, padded, mask)
    torch.testing.assert_close(tokens, masked_tokens, atol=1e-5, rtol=1e-5)


def test_its_flops_are_what_torch_counts() -> None:
    network = _network()
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        network(torch.randn(1, 50, 32), torch.randn(1, 9, 32))
    counted = counter.get_total_flops()
    assert router_flops(network.config, num_visual=50, num_question=9) == pytest.approx(
        counted, rel=0.001
    )


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    loaded = load_router(_saved(tmp_path), fingerprint="f" * 16, geometry=GEOMETRY)
    visual, question = torch.randn(6, 32), torch.randn(4, 32)
    with torch.inference_mode():
        expected = _network()(visual[None], question[None])[0][0]
    torch.testing.assert_close(loaded.score(visual, question)[0], expected)
    assert loaded.identity.startswith("tiny@")


def test_a_changed_weights_file_is_refused(tmp_path: Path) -> None:
    weights = _saved(tmp_path) / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(RouterMismatch, match="sha256"):
        load_router(tmp_path, fingerprint="f" * 16, geometry=GEOMETRY)


def test_a_router_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RouterMismatch, match="fingerprint"):
        load_router(_saved(tmp_path), fingerprint="0" * 16, geometry=GEOMETRY)


def test_a_router_of_another_shape_is_refused_naming_the_difference(tmp_path: Path) -> None:
    from dataclasses import replace

    _saved(tmp_path)
    with pytest.raises(RouterMismatch, match="num_layers is 8, the model's is 9"):
        load_router(tmp_path, fingerprint="f" * 16, geometry=replace(GEOMETRY, num_layers=9))


@pytest.mark.parametrize("damage", ["", "{", '{"version": 1}', "[]"])
def test_an_unreadable_manifest_is_refused(tmp_path: Path, damage: str) -> None:
    (_saved(tmp_path) / MANIFEST_NAME).write_text(damage)
    with pytest.raises(RouterMismatch, match="manifest"):
        load_router(tmp_path, fingerprint="f" * 16, geometry=GEOMETRY)


def test_tensors_that_do_not_fit_their_description_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path) / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["network"]["width"] = 128
    path.write_text(json.dumps(manifest))
    with pytest.raises(RouterMismatch, match="do not fit"):
        load_router(tmp_path, fingerprint="f" * 16, geometry=GEOMETRY)
