"""Random weights of named shapes load, answer to their full length, and repeat."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForImageTextToText

from allrounder.core import SamplingParams
from allrounder.engine.execution.runner import ModelRunner
from allrounder.errors import ModelUnsupported
from allrounder.models.families import FAMILIES
from allrounder.models.loading import load_adapter, random_adapter
from allrounder.models.shapes import SHAPES, QwenShape
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import answers
from tests.tiny import chat_request

CPU, FLOAT32 = torch.device("cpu"), torch.float32
TINY_QWEN = QwenShape(
    width=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    mlp_width=64,
    vocab_size=320,
    mrope_section=(1, 1, 2),
    vision_width=32,
    vision_mlp_width=64,
    vision_layers=2,
    vision_heads=2,
    full_attention_layers=(1,),
    max_positions=512,
)


@pytest.fixture(scope="module")
def tiny() -> TransformersAdapter:
    return load_adapter("random:tiny", device="cpu")


def test_a_random_shape_answers_to_its_full_length_in_words(tiny: TransformersAdapter) -> None:
    request = chat_request(sampling=SamplingParams(max_tokens=12))
    result = answers(ModelRunner(tiny), [request])[request.id]
    assert (tiny.name, tiny.fixed_visual, tiny.eos_token_ids) == ("random-tiny", 64, frozenset())
    assert result.num_generated == 12
    assert result.answer


def test_the_same_shape_gives_the_same_weights_and_leaves_the_global_seed(
    tiny: TransformersAdapter,
) -> None:
    state = torch.random.get_rng_state()
    again = load_adapter("random:tiny", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.fingerprint == tiny.fingerprint
    assert torch.equal(again.embed([1, 5, 9]), tiny.embed([1, 5, 9]))


def test_weights_are_made_in_the_dtype_that_was_asked_for() -> None:
    half = load_adapter("random:tiny", device="cpu", dtype="bfloat16")
    assert half.dtype == "bfloat16"
    request = chat_request()
    assert answers(ModelRunner(half), [request])[request.id].num_generated == 8
    assert torch.isfinite(half.logits(half.embed(range(16)))).all()


def test_every_generated_id_reads_as_text(tiny: TransformersAdapter) -> None:
    stream = tiny.text_stream()
    assert [stream.push(idx) for idx in (300, 319)] == [" t300", " t319"]


def test_an_unknown_shape_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(ModelUnsupported, match=r"random:llava-1\.5-7b.*random:tiny"):
        load_adapter("random:llava-99b")


def test_the_plain_twin_has_the_weights_as_the_library_lays_them_and_still_generates(
    tiny: TransformersAdapter,
) -> None:
    twin = tiny.plain_twin()
    ids = torch.tensor([[1, 30, 40, 50, 60]])
    generated = twin.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert generated.shape == (1, 11)
    for ours, theirs in zip(tiny._model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert theirs.is_contiguous()
        assert (ours.data_ptr() == theirs.data_ptr()) == ours.is_contiguous()


@pytest.mark.parametrize(
    ("name", "billions"), [("llava-1.5-7b", 7.06), ("qwen2.5-vl-7b", 8.29), ("llava-512x32", 0.14)]
)
def test_a_shape_has_the_parameters_of_its_name(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(SHAPES[name].config())
    counted = sum(math.prod(parameter.shape) for parameter in model.parameters())
    assert counted / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("shape", [TINY_QWEN, SHAPES["tiny"]], ids=["qwen", "llava"])
def test_a_processor_renders_the_image_before_the_text(shape: QwenShape) -> None:
    processor = shape.processor()
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    assert text.index(processor.image_token) < text.index("What is it?")
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(shape.config().image_token_id) == 1


if TINY_QWEN.config().model_type in FAMILIES:

    def test_a_random_qwen_answers_to_its_full_length() -> None:
        adapter = random_adapter(TINY_QWEN, name="tiny-qwen", device=CPU, dtype=FLOAT32)
        request = chat_request()
        assert answers(ModelRunner(adapter), [request])[request.id].num_generated == 8
