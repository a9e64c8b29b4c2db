"""The packed forward equals transformers' own, and a stopped training goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from allrounder.demo.questions import ask_questions
from allrounder.demo.scenes import NUM_PATCHES, SceneSplit, draw_scene, object_marks, scene_rng
from allrounder.training.muon import orthogonalise
from research.demo_model.checkpoint import load_checkpoint
from research.demo_model.decoder import PackedDecoder
from research.demo_model.decoder_training import (
    DecoderOptions,
    DecoderTraining,
    StepResult,
    tally_loss,
)
from research.demo_model.lessons import Curriculum
from research.demo_model.lvlm import build_model
from research.demo_model.packing import pack
from research.demo_model.tokens import prefix_ids, tokenise, train_tokenizer
from research.demo_model.training import DemoTrainingOptions, train
from research.demo_model.vision_training import VisionOptions


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_options(folder: Path, num_steps: int) -> DemoTrainingOptions:
    return DemoTrainingOptions(
        output=folder / "weights",
        work=folder / "work",
        num_scenes=24,
        num_threads=1,
        evaluation_scenes=2,
        vision=VisionOptions(num_steps=1, batch_size=2, num_held_back=4),
        decoder=DecoderOptions(num_steps=num_steps, checkpoint_steps=1, evaluate_steps=100),
        curriculum=Curriculum(batch_size=2, max_blocks=1),
    )


def test_packed_questions_get_the_logits_that_transformers_gives_them_alone() -> None:
    tokenizer = train_tokenizer(0, num_scenes=60)
    torch.manual_seed(0)
    model = build_model(vocab_size=len(tokenizer), pad_id=0, bos_id=1, eos_id=2, image_id=3)
    scene = draw_scene(scene_rng(SceneSplit.TEST, 4, 0))
    questions = ask_questions(scene, Random(0), per_type=1)
    packed = pack([tokenise(tokenizer, questions)], [object_marks(scene)])
    prefix, visual = prefix_ids(tokenizer), torch.randn(1, NUM_PATCHES, 128) * 0.3
    decoder = PackedDecoder(model, prefix)
    with torch.no_grad():
        states = decoder(visual, torch.arange(NUM_PATCHES)[None], packed, num_visual=NUM_PATCHES)
        logits = decoder.logits(states, packed)
        embed = model.model.language_model.embed_tokens
        for index, item in enumerate(packed.questions):
            parts = (
                embed(torch.tensor(prefix)),
                visual[0],
                embed(torch.tensor(item.prompt + item.answer)),
            )
            hidden = model.model.language_model(inputs_embeds=torch.cat(parts)[None])
            start = len(prefix) + NUM_PATCHES + len(item.prompt) - 1
            alone = model.lm_head(hidden.last_hidden_state[0, start:-1])
            torch.testing.assert_close(
                logits[packed.target_question == index], alone, atol=1e-4, rtol=1e-4
            )


@pytest.mark.timeout(60)
def test_a_stopped_training_resumes_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(tiny_options(straight, 2))
    options = tiny_options(stopped, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderTraining, "_train_step", interrupted_at_second_step())
        with pytest.raises(KeyboardInterrupt):
            train(options)
    state = load_checkpoint(stopped / "work" / "decoder.pt")
    assert state is not None
    assert state["step"] == 1
    train(options)
    a, b = (
        LlavaForConditionalGeneration.from_pretrained(folder / "weights").state_dict()
        for folder in (straight, stopped)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert AutoProcessor.from_pretrained(stopped / "weights").tokenizer.eos_token == "</s>"


@pytest.mark.timeout(60)
def test_a_training_goes_on_from_saved_weights_with_vision_and_words_as_they_are(
    tmp_path: Path,
) -> None:
    train(tiny_options(tmp_path / "first", 1))
    start = tmp_path / "first" / "weights"
    train(
        replace(
            tiny_options(tmp_path / "second", 1), start=start, curriculum=Curriculum.continued()
        )
    )
    before, after = (
        LlavaForConditionalGeneration.from_pretrained(folder).state_dict()
        for folder in (start, tmp_path / "second" / "weights")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("language_model" in name or "lm_head" in name for name in changed)
    assert not (tmp_path / "second" / "work" / "vision.pt").exists()


def test_a_tally_is_perfect_where_the_first_token_and_every_middle_are_looked_at_alike() -> None:
    centres_NV = torch.tensor([[True, False, True], [False, False, False]])
    alike_NC = torch.tensor([[1 / 3, 0.0, 1 / 3, 0.0, 1 / 3], [1.0, 0.0, 0.0, 0.0, 0.0]])
    assert tally_loss(alike_NC, centres_NV, 2).tolist() == pytest.approx([0, 0], abs=1e-4)
    swapped = tally_loss(alike_NC.flip(0), centres_NV, 2)
    assert swapped.min() > 1


def interrupted_at_second_step() -> Callable[[DecoderTraining], StepResult]:
    original = DecoderTraining._train_step

    def step(training: DecoderTraining) -> StepResult:
        if training.step == 1:
            raise KeyboardInterrupt
        return original(training)

    return step


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 40, 24)))
    assert values.min() > 0.5
    assert values.max() < 1.4
