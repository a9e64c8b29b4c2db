"""The public Python surface: what a researcher imports, and what it says when it is misused."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import allrounder
from allrounder import VLM, Answer, Counts, FlopsShare, Quality
from allrounder.errors import AllrounderError, BudgetTooSmall, StartupError

EXAMPLE = Path(allrounder.__file__).parent / "demo" / "example.png"
QUESTION = "Describe the largest shape."

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return VLM("demo", device="cpu")


@pytest.fixture(scope="module")
def dense_text(demo_weights: Path) -> str:
    """What transformers' own `generate` answers."""
    model = LlavaForConditionalGeneration.from_pretrained(demo_weights).eval()
    processor = AutoProcessor.from_pretrained(demo_weights)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    with Image.open(EXAMPLE) as image:
        inputs = processor(text=prompt, images=image.convert("RGB"), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=256, do_sample=False)
    return str(
        processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )


def test_at_budget_1_it_is_the_dense_model(vlm: VLM, dense_text: str) -> None:
    answer = vlm.generate(EXAMPLE, QUESTION)
    assert isinstance(answer, Answer)
    assert str(answer) == answer.text == dense_text
    assert answer.pruning.flops.saved == 0
    assert answer.plan.is_dense


def test_every_form_of_an_image_is_the_same_image(vlm: VLM) -> None:
    content = EXAMPLE.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        forms: list[Any] = [EXAMPLE, str(EXAMPLE), content, opened, [EXAMPLE]]
        answers = [vlm.generate(form, QUESTION, 0.5) for form in forms]
    assert len({(answer.text, answer.plan) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("budget", "is_kept"),
    [
        (0.3, lambda a: a.pruning.flops.prefill_ratio <= 0.3),
        ({"flops": 0.3, "strategy": "cdpruner"}, lambda a: a.pruning.strategy == "cdpruner"),
        (FlopsShare(share=0.3), lambda a: a.pruning.flops.prefill_ratio <= 0.3),
        (
            Counts(tokens=24),
            lambda a: a.plan.num_kept == 24,
        ),
        (Quality(loyalty=0.9), lambda a: a.pruning.budget.expected_loyalty >= 0.9),
    ],
)
def test_every_form_of_a_budget_is_kept(vlm: VLM, budget: Any, is_kept: Any) -> None:
    answer = vlm.generate(EXAMPLE, QUESTION, budget)
    assert is_kept(answer)
    assert answer.plan.num_kept < answer.plan.num_visual


def test_a_strategy_and_its_options_may_be_given_beside_a_number(vlm: VLM) -> None:
    answer = vlm.generate(EXAMPLE, QUESTION, 0.7, strategy="fastv", options={"layer": 3})
    assert answer.pruning.strategy == "fastv"
    assert answer.plan.points[0][0] == 3


def test_a_stream_is_the_answer_in_pieces(vlm: VLM) -> None:
    stream = vlm.stream(EXAMPLE, QUESTION, 0.5)
    with pytest.raises(RuntimeError, match="not complete"):
        _ = stream.answer
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text == vlm.generate(EXAMPLE, QUESTION, 0.5).text


def test_a_stream_that_is_left_holds_nothing_and_two_may_be_read_in_turns(vlm: VLM) -> None:
    first, second = vlm.stream(EXAMPLE, QUESTION, 0.5), vlm.stream(EXAMPLE, QUESTION, 1)
    pieces = [next(first) + next(second) for _ in range(3)]
    assert len(pieces) == 3
    first.close()
    rest = list(second)
    assert "".join([*rest])
    assert second.answer.text == vlm.generate(EXAMPLE, QUESTION).text
    assert vlm._runner.kv_bytes_held() == 0


@pytest.mark.parametrize("strategy", ["par", "fastv"])
def test_a_plan_is_that_of_the_answer(vlm: VLM, strategy: str) -> None:
    planned = vlm.plan(EXAMPLE, QUESTION, 0.6, strategy=strategy)
    answer = vlm.generate(EXAMPLE, QUESTION, 0.6, strategy=strategy, max_tokens=1)
    assert planned.plan == answer.plan
    assert planned.pruning.flops.prefill_ratio == answer.pruning.flops.prefill_ratio


@pytest.mark.parametrize(
    ("param", "wrong"),
    [
        ("image", {"image": "nowhere.png"}),
        ("image", {"image": b"no image"}),
        ("image", {"image": []}),
        ("image", {"image": 3}),
        ("question", {"question": " "}),
        ("budget", {"budget": 0}),
        ("budget", {"budget": 1.5}),
        ("budget", {"budget": "half"}),
        ("budget.colour", {"budget": {"flops": 0.5, "colour": 1}}),
        ("budget.strategy", {"strategy": "magic"}),
        ("budget.options.colour", {"options": {"colour": 1}}),
        ("max_tokens", {"max_tokens": 0}),
        ("temperature", {"temperature": 3}),
        ("top_p", {"top_p": 0}),
        ("stop", {"stop": [""]}),
    ],
)
def test_what_is_wrong_is_a_value_error_that_names_the_argument(
    vlm: VLM, param: str, wrong: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"image": EXAMPLE, "question": QUESTION, "budget": 0.5} | wrong
    with pytest.raises(ValueError, match=r".") as caught:
        vlm.generate(**given)
    assert isinstance(caught.value, AllrounderError)
    assert caught.value.param == param


def test_a_budget_that_is_too_small_names_the_smallest(vlm: VLM) -> None:
    with pytest.raises(BudgetTooSmall, match=r"smallest possible is (0\.\d+)"):
        vlm.generate(EXAMPLE, QUESTION, 1e-6)


def test_a_model_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(StartupError):
        VLM("no/such/folder")


def test_importing_the_package_loads_neither_torch_nor_the_service() -> None:
    script = (
        "import sys, allrounder; dir(allrounder); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'fastapi', 'redis')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    assert all(getattr(allrounder, name) is not None for name in allrounder.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = allrounder.nothing
