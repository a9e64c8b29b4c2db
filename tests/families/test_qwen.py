"""What is the Qwen families' own: grids of any size, three position axes, DeepStack planes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allrounder.core import ChatRequest, SamplingParams
from allrounder.core.budget import Counts
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.execution.sequence import DeviceSequence
from allrounder.errors import InvalidImage
from allrounder.measure.frozen import FrozenModel
from allrounder.measure.plans import make_plan
from allrounder.models.families.family import ImageFeatures, PromptPositions
from allrounder.models.loading import load_adapter
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import answers, recorded
from tests.families.cases import FAMILIES
from tests.families.qwen import NUM_LAYERS, NUM_PLANES
from tests.families.reference import Reference
from tests.tiny import chat_request, noise_image

pytestmark = pytest.mark.timeout(90)
NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MAX_ASPECT = 200


@dataclass(frozen=True, kw_only=True)
class Loaded:
    folder: Path
    adapter: TransformersAdapter
    reference: Reference

    def runner(self) -> ModelRunner:
        return ModelRunner(self.adapter)


def _load(name: str, folder: Path) -> Loaded:
    (case,) = (case for case in FAMILIES if case.name == name)
    case.build(folder)
    adapter = load_adapter(str(folder), device="cpu")
    return Loaded(folder=folder, adapter=adapter, reference=Reference(folder))


@pytest.fixture(scope="module", params=NAMES)
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return _load(request.param, tmp_path_factory.mktemp("qwen") / request.param)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return _load("qwen3_vl", tmp_path_factory.mktemp("qwen") / "deepstack")


def _answered(
    qwen: Loaded,
    request: ChatRequest,
    *,
    visual: Callable[[ImageFeatures], ImageFeatures] = lambda visual: visual,
    positions: Callable[[PromptPositions], PromptPositions] = lambda positions: positions,
) -> tuple[DeviceSequence, Tensor]:
    """The request run to its end, and its logits, with what the family says of images altered."""
    adapter, runner = qwen.adapter, qwen.runner()
    encode, place = adapter.encode, adapter.positions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "encode", lambda images: [visual(v) for v in encode(images)])
        patch.setattr(adapter, "positions", lambda *args: positions(place(*args)))
        return recorded(runner, adapter, request)


def _first_logits(qwen: Loaded, request: ChatRequest, **altered: Any) -> Tensor:
    return _answered(qwen, request, **altered)[1][0]


def _request(seed: int = 0, *, size: tuple[int, int] = (130, 90), **fields: Any) -> ChatRequest:
    image = noise_image(seed, width=size[0], height=size[1])
    return chat_request(seed, images=(image,), **fields)


@given(width=st.integers(1, 700), height=st.integers(1, 700))
def test_a_layout_is_what_the_processor_makes_of_the_image(
    qwen: Loaded, width: int, height: int
) -> None:
    assume(max(width, height) <= MAX_ASPECT * min(width, height))
    processor = qwen.reference.processor
    image = Image.new("RGB", (width, height))
    inputs = processor(images=[image], text=processor.image_token, return_tensors="pt")
    frames, rows, cols = (inputs["image_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
    layout = qwen.adapter.layout(noise_image(0, width=width, height=height))
    assert (layout.grid.rows, layout.grid.cols, frames) == (rows, cols, 1)
    assert layout.num_visual == int((inputs["input_ids"] == processor.image_token_id).sum())


def test_a_strip_that_the_processor_refuses_is_an_invalid_image(qwen: Loaded) -> None:
    runner = qwen.runner()
    runner.prepare(_request(size=(2 * MAX_ASPECT, 2)))
    for size in ((2 * MAX_ASPECT + 1, 2), (1, MAX_ASPECT + 1)):
        with pytest.raises(InvalidImage) as caught:
            runner.prepare(_request(size=size))
        assert (caught.value.status, caught.value.param) == (400, "image")


def test_the_answer_depends_on_the_image(qwen: Loaded) -> None:
    request = _request()
    other = replace(request, images=(noise_image(9, width=130, height=90),))
    assert (_first_logits(qwen, request) - _first_logits(qwen, other)).abs().max() > 0.1


@pytest.mark.parametrize("axis", range(3))
def test_the_answer_depends_on_each_position_axis(qwen: Loaded, axis: int) -> None:
    def flattened(positions: PromptPositions) -> PromptPositions:
        rows_PT = positions.rows_PT.clone()
        is_image = (rows_PT != rows_PT[0]).any(dim=0)
        rows_PT[axis, is_image] = 0
        return replace(positions, rows_PT=rows_PT)

    request = _request()
    moved = _first_logits(qwen, request) - _first_logits(qwen, request, positions=flattened)
    assert moved.abs().max() > 0.1


def test_positions_are_those_of_the_library(qwen: Loaded) -> None:
    images = tuple(
        noise_image(i, width=w, height=h) for i, (w, h) in enumerate([(300, 20), (9, 9)])
    )
    request = chat_request(0, images=images)
    layouts = [qwen.adapter.layout(image) for image in images]
    ours = qwen.adapter.positions(qwen.adapter.prompt(request.question, layouts), layouts)
    inputs = qwen.reference.inputs(request)
    theirs, delta = qwen.reference.model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
    )
    assert torch.equal(ours.rows_PT, theirs[:, 0])
    assert ours.next == inputs["input_ids"].shape[1] + int(delta) == int(ours.rows_PT.max()) + 1
    assert ours.next < inputs["input_ids"].shape[1]


def test_images_of_a_batch_are_encoded_in_one_call_and_split(qwen: Loaded) -> None:
    images = [noise_image(i, width=w, height=40) for i, w in enumerate((40, 300, 90))]
    visual = qwen.adapter._model.model.visual
    calls: list[Any] = []
    with visual.register_forward_hook(lambda *args: calls.append(args)):
        together = qwen.adapter.encode(images)
    assert len(calls) == 1
    for image, batched in zip(images, together, strict=True):
        (alone,) = qwen.adapter.encode([image])
        assert len(alone.tokens_VD) == qwen.adapter.layout(image).num_visual
        torch.testing.assert_close(batched.tokens_VD, alone.tokens_VD, atol=1e-4, rtol=1e-4)
        for ours, plane in zip(batched.planes, alone.planes, strict=True):
            torch.testing.assert_close(ours, plane, atol=1e-4, rtol=1e-4)


def test_the_cost_is_what_torch_counts(qwen: Loaded) -> None:
    request = _request(
        form=Counts(tokens=11, layers=5), strategy="random", sampling=SamplingParams(max_tokens=5)
    )
    runner = qwen.runner()
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encoder, torch.inference_mode():
            qwen.adapter.encode(request.images)
        with FlopCounterMode(display=False) as whole:
            cost = answers(runner, [request])[request.id].cost
    assert cost.executed == pytest.approx(
        whole.get_total_flops() - encoder.get_total_flops(), rel=0.01
    )


VIDEO = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 2}


def _as_on_the_hub(images: dict[str, Any]) -> dict[str, dict[str, Any]]:
    size = images.pop("size")
    pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    return {"preprocessor_config": {**images, **pixels}, "video_preprocessor_config": VIDEO}


def _as_saved_by_version_5(images: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"processor_config": {"image_processor": images, "video_processor": VIDEO}}


@pytest.mark.parametrize("form", [_as_on_the_hub, _as_saved_by_version_5])
def test_a_folder_that_names_a_video_processor_loads_without_it(
    qwen: Loaded, tmp_path: Path, form: Callable[[dict[str, Any]], dict[str, dict[str, Any]]]
) -> None:
    preprocessor = qwen.folder / "preprocessor_config.json"
    for path in set(qwen.folder.iterdir()) - {preprocessor}:
        (tmp_path / path.name).symlink_to(path)
    for name, content in form(json.loads(preprocessor.read_text())).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    loaded = load_adapter(str(tmp_path), device="cpu")
    layouts = [adapter.layout(noise_image(0)) for adapter in (qwen.adapter, loaded)]
    assert layouts[0] == layouts[1]
    assert loaded.prompt("What?", layouts) == qwen.adapter.prompt("What?", layouts)


@pytest.mark.parametrize("layer_idx", [0, 2])
def test_a_teacher_forced_trial_that_keeps_all_harms_nothing(qwen: Loaded, layer_idx: int) -> None:
    frozen, image = FrozenModel(qwen.adapter, max_answer_tokens=6), _request().images[0]
    (answer,) = frozen.answer([frozen.ask(image, frozen.encode(image), "What is it?")])
    whole, half = range(answer.num_visual), range(0, answer.num_visual, 2)
    plans = [
        make_plan(
            num_layers=NUM_LAYERS, num_visual=answer.num_visual, kept=kept, layer_idx=layer_idx
        )
        for kept in (whole, half)
    ]
    nothing, something = frozen.compare([(answer, plan) for plan in plans])
    assert nothing.kl_nats == pytest.approx(0, abs=1e-5)
    assert something.kl_nats > 1e-3


def test_deepstack_layers_are_protected_and_each_plane_moves_the_answer(qwen3: Loaded) -> None:
    assert qwen3.adapter.geometry.protected_layers == frozenset(range(NUM_PLANES))
    request = _request()
    whole = _first_logits(qwen3, request)
    for dropped in range(NUM_PLANES):

        def without(visual: ImageFeatures, dropped: int = dropped) -> ImageFeatures:
            planes = [plane * (idx != dropped) for idx, plane in enumerate(visual.planes)]
            return replace(visual, planes=tuple(planes))

        assert (whole - _first_logits(qwen3, request, visual=without)).abs().max() > 0.1


@pytest.mark.parametrize("layer", range(1, NUM_PLANES + 1))
@pytest.mark.parametrize("num_images", [1, 2])
def test_a_selection_amid_the_deepstack_layers_equals_a_mask(
    qwen3: Loaded, layer: int, num_images: int
) -> None:
    request = chat_request(
        layer,
        num_images=num_images,
        form=Counts(tokens=9),
        strategy="fastv",
        options={"layer": layer},
    )
    sequence, ours = _answered(qwen3, request)
    assert sequence.plan.last_selection_layer == layer
    theirs = qwen3.reference.logits(request, sequence.token_ids, sequence.plan)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
