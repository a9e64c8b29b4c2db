"""The network's size and reach, and what a folder of router weights must be to be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from allrounder.core import ModelGeometry
from allrounder.errors import RouterMismatch
from allrounder.router.network import MetaRouter, RouterConfig, router_flops
from allrounder.router.weights import (
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Calibration,
    Loyalty,
    Manifest,
    load_router,
    save_router,
)

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


def _network(seed: int = 0, *, match_heads: int = 0) -> MetaRouter:
    torch.manual_seed(seed)
    config = RouterConfig.for_model(model_width=32, num_layers=8)
    network = MetaRouter(replace(config, match_heads=match_heads))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network.eval()


CALIBRATION = Calibration(
    block_influence=(0.1,) * 8,
    skip_ratios=(0.0, 0.5),
    token_ratios=(0.1, 1 / 3, 1.0),
    kl_nats=((0.5, 0.25, 0.0), (0.8, 0.4, 0.3)),
    loyalty=Loyalty(
        num_samples=7,
        mean=((0.5, 6 / 7, 1.0), (0.4, 0.8, 0.9)),
        standard_error=((0.2, 1 / 7, 0.0), (0.2, 0.15, 1 / 7)),
    ),
)


def _saved(
    folder: Path, *, fingerprint: str = "f" * 16, calibration: Calibration | None = None
) -> Path:
    save_router(
        folder,
        _network(),
        model="tiny",
        fingerprint=fingerprint,
        geometry=GEOMETRY,
        training={"samples": 0},
        calibration=calibration,
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


@pytest.mark.parametrize("match_heads", [0, 8])
def test_its_flops_are_what_torch_counts(match_heads: int) -> None:
    network = _network(match_heads=match_heads)
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


def test_a_calibration_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    folder = _saved(tmp_path, calibration=CALIBRATION)
    loaded = load_router(folder, fingerprint="f" * 16, geometry=GEOMETRY)
    assert loaded.manifest.calibration == CALIBRATION
    assert loaded.block_influence == CALIBRATION.block_influence


def test_a_calibration_from_before_loyalty_still_loads(tmp_path: Path) -> None:
    path = _saved(tmp_path, calibration=CALIBRATION) / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    del manifest["calibration"]["loyalty"]
    path.write_text(json.dumps(manifest))
    loaded = load_router(tmp_path, fingerprint="f" * 16, geometry=GEOMETRY)
    assert loaded.manifest.calibration == CALIBRATION.model_copy(update={"loyalty": None})


def test_the_shipped_manifest_is_valid() -> None:
    path = Path(__file__).parents[2] / "router_weights" / "demo" / MANIFEST_NAME
    assert Manifest.model_validate_json(path.read_text()).calibration is not None


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("token_ratios",), [0.1, 0.1, 1.0], "token_ratios must ascend"),
        (("token_ratios",), [0.0, 0.5, 1.0], "token_ratios"),
        (("skip_ratios",), [], "skip_ratios"),
        (("skip_ratios",), [0.5, 0.0], "skip_ratios must ascend"),
        (("kl_nats",), [[0.5, 0.0]], "kl_nats must have 2 rows of 3 values"),
        (("kl_nats", 0, 0), -0.1, "kl_nats"),
        (("kl_nats", 0, 0), float("nan"), "kl_nats"),
        (("block_influence",), [0.1] * 7, "block_influence"),
        (("loyalty", "mean"), [[0.5, 0.6, 1.0]], "loyalty.mean must have 2 rows"),
        (("loyalty", "mean", 1, 2), 1.1, "loyalty.mean"),
        (("loyalty", "standard_error", 1), [0.1], "loyalty.standard_error must have"),
        (("loyalty", "standard_error", 0, 0), float("inf"), "loyalty.standard_error"),
        (("loyalty", "num_samples"), 0, "loyalty.num_samples"),
        (("loyalty", "colour"), "red", "loyalty.colour"),
    ],
)
def test_a_wrong_calibration_is_refused_naming_its_part(
    tmp_path: Path, place: tuple[str | int, ...], value: object, words: str
) -> None:
    path = _saved(tmp_path, calibration=CALIBRATION) / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    part = manifest["calibration"]
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(RouterMismatch, match=words.replace(".", "[.]")):
        load_router(tmp_path, fingerprint="f" * 16, geometry=GEOMETRY)
