"""A run of a few steps writes a folder that a server accepts, and repeats itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from pydantic_settings import CliApp
from typer.testing import CliRunner

from allrounder.errors import InvalidField
from allrounder.measure.frozen import FrozenModel
from allrounder.router.weights import load_router
from allrounder.training.card import CARD_NAME, command
from allrounder.training.options import RouterTrainingOptions
from allrounder.training.train_router import train_router
from allrounder_service.cli.main import cli
from tests.tiny import NUM_VISUAL
from tests.training.conftest import NUM_LAYERS, WIDTH


def options(tiny_folder: Path, output: Path, **changes) -> RouterTrainingOptions:
    chosen = {
        "model": str(tiny_folder),
        "data": "demo",
        "output": output,
        "device": "cpu",
        "samples": 6,
        "calibration_samples": 2,
        "max_answer_tokens": 2,
        "init": "attention",
        "init_epochs": 1,
        **changes,
    }
    if chosen["init"] == "zero":
        del chosen["init_epochs"]
    return RouterTrainingOptions(**chosen)


@pytest.mark.timeout(60)
def test_a_short_run_writes_a_router_that_loads(
    tiny_folder: Path, frozen: FrozenModel, tmp_path: Path
) -> None:
    manifest = train_router(options(tiny_folder, tmp_path / "router"))
    router = load_router(
        tmp_path / "router",
        fingerprint=frozen.adapter.fingerprint,
        geometry=frozen.adapter.geometry,
    )
    assert router.candidates == (2, 3)
    assert len(router.block_influence or ()) == NUM_LAYERS
    tokens_V, layers_N = router.score(torch.randn(NUM_VISUAL, WIDTH), torch.randn(7, WIDTH))
    assert (len(tokens_V), len(layers_N)) == (NUM_VISUAL, 2)
    assert manifest.calibration is not None
    assert manifest.calibration.kl_nats[0][-1] == pytest.approx(0, abs=1e-5)
    assert manifest.training["samples"] == 4
    card = (tmp_path / "router" / CARD_NAME).read_text()
    assert "another sample's question" in card
    assert manifest.calibration.loyalty is not None
    assert manifest.calibration.loyalty.mean[0][-1] == 1
    assert "| 50.0% | 0." in card
    assert str(tmp_path) not in card.replace(str(tiny_folder), "MODEL")


@pytest.mark.timeout(60)
def test_a_repeated_run_reads_its_measured_actions_and_gives_the_same_weights(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = {"work": tmp_path / "work", "calibration_samples": 0, "init": "zero"}
    digests = []
    for name in ("first", "second"):
        with caplog.at_level(logging.WARNING):
            digests.append(train_router(options(tiny_folder, tmp_path / name, **same)).sha256)
    assert digests[0] == digests[1]
    assert len(list((tmp_path / "work").iterdir())) == 1


@pytest.mark.timeout(60)
def test_imitation_has_images_of_its_own_and_later_rounds_try_the_routers_own_scores(
    tiny_folder: Path, tmp_path: Path
) -> None:
    manifest = train_router(
        options(
            tiny_folder,
            tmp_path / "router",
            imitation_samples=8,
            questions_per_image=2,
            match_heads=4,
            muon_learning_rate=0.02,
            rounds=2,
            on_policy=True,
        )
    )
    assert manifest.training["glances"] == 8
    assert manifest.training["samples"] == 6
    assert manifest.network["match_heads"] == 4


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"first_candidate": 4}, "first_candidate"),
        ({"proposal_layers": (9,)}, "proposal_layers"),
        ({"width": 30}, "width"),
        ({"match_heads": 5}, "match_heads"),
        ({"data": "demo:4", "calibration_samples": 4}, "data"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(
    tiny_folder: Path, tmp_path: Path, changes: dict, param: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        train_router(options(tiny_folder, tmp_path, **changes))
    assert param in str(caught.value.param)


@pytest.mark.parametrize(
    "changes",
    [
        {"imitation_samples": 8},
        {"muon_learning_rate": 0.02},
        {"init": "attention", "epochs": 0, "on_policy": True},
    ],
)
def test_an_option_that_would_change_nothing_is_refused(changes: dict) -> None:
    with pytest.raises(ValidationError, match="would change nothing"):
        RouterTrainingOptions(model="demo", data="demo", **changes)


def test_the_command_names_what_differs_from_the_defaults_and_repeats_the_run() -> None:
    chosen = RouterTrainingOptions(
        model="demo",
        data="demo",
        keep_ratios=(0.06, 0.12),
        init="attention",
        blind=True,
        output=Path("elsewhere"),
    )
    line = command(chosen)
    assert line == (
        "allrounder train router --model demo --data demo --keep-ratios 0.06 --keep-ratios 0.12 "
        "--init attention --blind"
    )
    parsed = CliApp.run(RouterTrainingOptions, cli_args=line.split()[3:])
    assert parsed == chosen.model_copy(update={"output": None})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("init", ["zero", "attention"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_the_command_line_trains_with_everything_else_at_its_default(
    tiny_folder: Path, tmp_path: Path, init: str, epochs: int
) -> None:
    line = command(
        options(
            tiny_folder, tmp_path, init=init, epochs=epochs, init_epochs=4, calibration_samples=0
        )
    )
    said = [*line.split()[1:], "--output", str(tmp_path)]
    assert CliRunner().invoke(cli, said).exit_code == 0
    assert (tmp_path / CARD_NAME).is_file()
