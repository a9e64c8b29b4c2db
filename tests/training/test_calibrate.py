"""What a calibration promises is what is served to the samples that it was measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allrounder.core import BudgetRequest, ChatRequest, SamplingParams
from allrounder.core.budget import Budget, Counts, FlopsShare, Quality
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.execution.sequence import Sequence as DeviceSequence
from allrounder.engine.planning.planner import CalibrationUse
from allrounder.measure.frozen import FrozenModel
from allrounder.models.loading import load_adapter
from allrounder.router.network import MetaRouter, RouterConfig
from allrounder.router.weights import Calibration, load_router, save_router
from allrounder.training import calibrate as calibration_module
from allrounder.training.bank import ImageBank
from allrounder.training.calibrate import calibrate, isotonic, isotonic_grid, loyalty_of
from allrounder.training.samples import load_images
from tests.engine.driving import begin, whole
from tests.tiny import NUM_VISUAL, chat_request, reference_model, tiny_llava_folder

NUM_LAYERS, MAX_TOKENS, NUM_SAMPLES = 4, 2, 12
TOKEN_RATIOS = (0.05, 0.2, 0.5, 0.8, 1.0)


class Calibrated:
    """A tiny model that changes its answers little by little, its router, and its samples."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.adapter = load_adapter(str(_steady_llava(folder / "tiny")), device="cpu")
        frozen = FrozenModel(self.adapter, max_answer_tokens=MAX_TOKENS)
        self.bank = ImageBank(frozen, load_images("demo", num_samples=NUM_SAMPLES, seed=0))
        self.calibration = calibrate(self._saved_router(None), self.bank)
        self._saved_router(self.calibration)
        self.dense = self.ask(FlopsShare(share=1.0))

    def _saved_router(self, calibration: Calibration | None) -> MetaRouter:
        torch.manual_seed(1)
        config = RouterConfig(model_width=32, candidates=(1, 2, 3), width=8, num_heads=2)
        network = MetaRouter(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0, 0.3)
        save_router(
            self._folder / "router",
            network,
            model="tiny",
            fingerprint=self.adapter.fingerprint,
            geometry=self.adapter.geometry,
            training={},
            calibration=calibration,
        )
        return network

    def ask(self, form: Budget, *, margin: float = 0.0) -> list[DeviceSequence]:
        """Every sample, through the engine."""
        router = load_router(
            self._folder / "router",
            fingerprint=self.adapter.fingerprint,
            geometry=self.adapter.geometry,
        )
        use = CalibrationUse(quality_margin=margin)
        runner = ModelRunner(self.adapter, router, calibration_use=use)
        live = sequences = begin(runner, list(self._requests(form)))
        while live:
            ended = {outcome.request_id for outcome in runner.step(whole(live)) if outcome.result}
            live = [sequence for sequence in live if sequence.request.id not in ended]
        return sequences

    def _requests(self, form: Budget) -> Iterator[ChatRequest]:
        for idx, image in enumerate(self.bank.images):
            for question in image.questions:
                yield replace(
                    chat_request(id=f"{idx} {question}"),
                    images=(image.load(),),
                    question=question,
                    budget=BudgetRequest(form=form, requested=None, strategy="par"),
                    sampling=SamplingParams(max_tokens=MAX_TOKENS),
                )

    def loyalty(self, asked: list[DeviceSequence]) -> float:
        pairs = zip(asked, self.dense, strict=True)
        return sum(ours.token_ids == dense.token_ids for ours, dense in pairs) / len(asked)


def _steady_llava(folder: Path) -> Path:
    tiny_llava_folder(folder, num_layers=NUM_LAYERS)
    model = reference_model(folder)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(0.05)
            layer.mlp.down_proj.weight.mul_(0.02)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_module, "TOKEN_RATIOS", TOKEN_RATIOS)
        return Calibrated(tmp_path_factory.mktemp("calibrated"))


@pytest.mark.timeout(120)
def test_loyalty_is_that_of_the_served_answers(calibrated: Calibrated) -> None:
    loyalty = calibrated.calibration.loyalty
    assert loyalty is not None
    assert loyalty.num_samples == NUM_SAMPLES
    served = [
        [
            calibrated.loyalty(calibrated.ask(Counts(tokens=count, layers=NUM_LAYERS - skips)))
            for count in (round(ratio * NUM_VISUAL) for ratio in TOKEN_RATIOS)
        ]
        for skips in range(4)
    ]
    smoothed_G = isotonic_grid(torch.tensor(served))
    torch.testing.assert_close(torch.tensor(loyalty.mean).double(), smoothed_G)
    assert 0 < loyalty.mean[0][0] < loyalty.mean[0][2] < 1


@pytest.mark.timeout(120)
def test_the_quality_asked_is_met_on_the_samples_of_the_calibration(calibrated: Calibrated) -> None:
    loyalty = calibrated.calibration.loyalty
    assert loyalty is not None
    # A smoothed cell stands for its neighbours too; by itself it may lie this far under.
    slack = 1 / NUM_SAMPLES
    limits = []
    for quality in (0.4, 0.5, 0.7, 0.8, 1.0):
        asked = calibrated.ask(Quality(loyalty=quality))
        assert calibrated.loyalty(asked) >= quality - slack
        assert all((sequence.plan.loyalty or 0) >= quality for sequence in asked)
        limits.append(sum(sequence.prepared.allocation.limit for sequence in asked))
    assert limits == sorted(limits)
    assert limits[0] < 0.6 * limits[-1]


@pytest.mark.timeout(120)
def test_a_margin_makes_no_answer_cheaper_and_few_samples_promise_little(
    calibrated: Calibrated,
) -> None:
    bold, wary = (
        calibrated.ask(Quality(loyalty=0.5), margin=margin)[0].prepared.allocation.limit
        for margin in (0, 1)
    )
    assert bold < wary
    assert calibrated.ask(Quality(loyalty=0.95), margin=1)[0].plan.is_dense


def test_errors_are_by_image_and_never_nothing() -> None:
    agrees_S = torch.tensor([1, 1, 1, 1, 0, 0, 1, 0], dtype=torch.float64)
    agrees_SG = torch.stack([agrees_S, torch.ones(8), torch.ones(8)], dim=1)[:, None].double()
    loyalty = loyalty_of(agrees_SG, [4, 4, 4, 4, 9, 9, 7, 7])
    assert loyalty.mean == ((0.625, 1.0, 1.0),)
    # Residual sums by image: 4 x 0.375, -2 x 0.625, 1 - 2 x 0.625.
    expected = (1.5 * (1.5**2 + 1.25**2 + 0.25**2)) ** 0.5 / 8
    assert loyalty.standard_error[0] == pytest.approx((expected, 1 / 8, 0.0))


def test_questions_about_a_single_image_promise_nothing() -> None:
    loyalty = loyalty_of(torch.ones(6, 1, 2, dtype=torch.float64), [3] * 6)
    assert loyalty.standard_error == ((1.0, 0.0),)


def test_isotonic_regression_pools_what_lies_in_the_wrong_order() -> None:
    lines = torch.tensor([[1.0, 3, 2, 4, 3, 3.5], [3.0, 2, 1, 1, 2, 9], [1, 2, 3, 4, 5, 6]])
    expected = [[1, 2.5, 2.5, 3.5, 3.5, 3.5], [1.75, 1.75, 1.75, 1.75, 2, 9], [1, 2, 3, 4, 5, 6]]
    torch.testing.assert_close(isotonic(lines), torch.tensor(expected))


def _falls_nowhere(grid_RC: Tensor) -> bool:
    return bool((grid_RC.diff(dim=1) >= 0).all() and (grid_RC.diff(dim=0) <= 0).all())


@pytest.mark.timeout(60)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 7))
def test_a_smoothed_grid_is_monotone_and_the_nearest_such(seed: int, rows: int, cols: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noisy_RC = torch.rand(rows, cols, generator=generator, dtype=torch.float64)
    smooth_RC = isotonic_grid(noisy_RC)
    assert _falls_nowhere(smooth_RC)
    assert float(smooth_RC.sum()) == pytest.approx(float(noisy_RC.sum()), abs=1e-4)
    torch.testing.assert_close(isotonic_grid(smooth_RC), smooth_RC)
    distance = (noisy_RC - smooth_RC).square().sum()
    other_RC = isotonic_grid(torch.rand(rows, cols, generator=generator, dtype=torch.float64))
    for weight in (0.01, 0.3, 1.0):
        mixed_RC = smooth_RC + weight * (other_RC - smooth_RC)
        assert (noisy_RC - mixed_RC).square().sum() >= distance - 1e-6
