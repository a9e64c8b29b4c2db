"""Divergence is that of what is served: the dense plan has none, and reference passes agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import LlavaForConditionalGeneration

from allrounder.errors import InvalidField
from allrounder.measure.frozen import DenseAnswer, EncodedQuestion, FrozenModel
from allrounder.measure.plans import make_plan, plan_by, view_of
from allrounder.pruning import make_strategy
from allrounder.pruning.fastv import FastV
from allrounder.pruning.mmtok import MMTok
from allrounder.pruning.pooling import Pool
from allrounder.pruning.resize import Resize
from allrounder.pruning.strategy import Context, Strategy
from allrounder.pruning.visionzip import VisionZip
from allrounder.training.bank import ImageBank
from allrounder.training.calibrate import monotone, skip_counts
from allrounder.training.similarity import block_influence, layer_similarity
from tests.tiny import NUM_VISUAL, reference_model
from tests.training.conftest import NUM_LAYERS


@pytest.fixture(scope="module")
def asked(bank: ImageBank) -> list[EncodedQuestion]:
    return [one for batch in bank.batches() for _, one in batch][:5]


@pytest.fixture(scope="module")
def answers(frozen: FrozenModel, asked: list[EncodedQuestion]) -> list[DenseAnswer]:
    return frozen.answer(asked, probed_layers=range(NUM_LAYERS))


@pytest.fixture(scope="module")
def reference(tiny_folder) -> LlavaForConditionalGeneration:
    return reference_model(tiny_folder)


def reference_hidden(
    reference: LlavaForConditionalGeneration, asked: EncodedQuestion, tail: list[int]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits of all rows, and the input of every layer, by transformers."""
    decoder = reference.model.language_model
    rows = decoder.embed_tokens(torch.tensor([*asked.prompt.token_ids, *tail]))
    rows[list(asked.prompt.visual_rows)] = asked.visual_VD
    with torch.no_grad():
        output = decoder(inputs_embeds=rows[None], output_hidden_states=True)
        return reference.lm_head(output.last_hidden_state)[0], output.hidden_states


def said(answer: DenseAnswer, token_ids: list[int]) -> DenseAnswer:
    """As if the model had been sure of these ids: a plan agrees if it chooses each after the last.

    So a greedy answer is checked by one pass that is told it.
    """
    steps = [
        torch.full_like(answer.steps[0], -50.0).index_fill_(0, torch.tensor([idx]), 0.0)
        for idx in token_ids
    ]
    return replace(answer, token_ids=token_ids, steps=steps)


def test_the_dense_plan_does_not_diverge(frozen: FrozenModel, answers: list[DenseAnswer]) -> None:
    dense = make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL)
    for divergence in frozen.compare([(answer, dense) for answer in answers]):
        assert divergence.kl_nats == pytest.approx(0, abs=1e-5)
        assert divergence.agrees


def test_keeping_every_token_does_not_diverge(
    frozen: FrozenModel, answers: list[DenseAnswer]
) -> None:
    for layer_idx in (0, 2):
        plan = make_plan(
            num_layers=NUM_LAYERS,
            num_visual=NUM_VISUAL,
            kept=range(NUM_VISUAL),
            layer_idx=layer_idx,
        )
        (divergence,) = frozen.compare([(answers[0], plan)])
        assert divergence.kl_nats == pytest.approx(0, abs=1e-5)


def test_answers_and_their_probabilities_are_those_of_transformers(
    reference: LlavaForConditionalGeneration, answers: list[DenseAnswer]
) -> None:
    for answer in answers:
        logits_RN, _ = reference_hidden(reference, answer.asked, answer.token_ids[:-1])
        expected_TN = logits_RN[-len(answer.token_ids) :].log_softmax(-1)
        assert_close(answer.log_probs_TN, expected_TN, atol=1e-4, rtol=1e-4)
        assert answer.token_ids == expected_TN.argmax(-1).tolist()


def test_a_packed_trial_measures_what_it_measures_alone(
    frozen: FrozenModel, answers: list[DenseAnswer]
) -> None:
    plans = [
        make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL, kept=[1, 5, 9], skipped=[2]),
        make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL, kept=[0, 3], layer_idx=1),
        make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL, skipped=[1, 3]),
    ]
    trials = [(answer, plan) for answer in answers for plan in plans]
    alone = [frozen.compare([trial])[0].kl_nats for trial in trials]
    together = [divergence.kl_nats for divergence in frozen.compare(trials)]
    assert together == pytest.approx(alone, abs=1e-4)
    assert max(alone) > 1e-3


def test_a_trial_of_fastv_keeps_what_the_last_row_looks_at(
    frozen: FrozenModel, answers: list[DenseAnswer]
) -> None:
    context = Context(geometry=frozen.adapter.geometry)
    view = view_of(answers[0], frozen, context, seed=0)
    plan = plan_by(FastV(layer=2), view, num_kept=4, num_skipped=0)
    expected = answers[0].attention[1][:, -1].mean(0).topk(4).indices.sort().values
    assert plan.kept == tuple(expected.tolist())
    assert plan.last_selection_layer == 2


def test_a_trial_of_a_strategy_that_looks_at_the_tower_needs_facts(
    frozen: FrozenModel, bank: ImageBank, answers: list[DenseAnswer]
) -> None:
    context, image = Context(geometry=frozen.adapter.geometry), bank.images[0].load()
    view = view_of(answers[0], frozen, context, seed=0)
    with pytest.raises(InvalidField, match="encoded with facts"):
        plan_by(MMTok(), view, num_kept=4, num_skipped=0)
    visual = frozen.encode(image, with_facts=True)
    (answer,) = frozen.answer([frozen.ask(image, visual, "What is it?")])
    seen = view_of(answer, frozen, context, seed=0)
    assert seen.visual_per_image == (NUM_VISUAL,)
    assert seen.vision is not None
    plan = plan_by(MMTok(), seen, num_kept=4, num_skipped=0)
    assert plan.kept == tuple(MMTok().select(seen, 4).tolist())


@pytest.mark.parametrize("strategy", [VisionZip(), Pool(), Resize()], ids=lambda s: s.name)
def test_a_strategy_that_remakes_the_rows_is_not_tried_on_a_dense_answer(
    frozen: FrozenModel, answers: list[DenseAnswer], strategy: Strategy
) -> None:
    context = Context(geometry=frozen.adapter.geometry)
    view = view_of(answers[0], frozen, context, seed=0)
    with pytest.raises(InvalidField, match="running requests only"):
        plan_by(strategy, view, num_kept=4, num_skipped=0)


@pytest.mark.parametrize("name", ["pdrop", "llavolta", "autoprune"])
def test_a_strategy_that_looks_at_its_own_plan_is_not_tried_on_a_dense_answer(
    frozen: FrozenModel, answers: list[DenseAnswer], name: str
) -> None:
    context = Context(geometry=frozen.adapter.geometry)
    view = view_of(answers[0], frozen, context, seed=0)
    with pytest.raises(InvalidField, match=f"{name} can be tried on running requests only"):
        plan_by(make_strategy(name), view, num_kept=4, num_skipped=0)


def test_block_influence_is_that_of_transformers_hidden_states(
    frozen: FrozenModel, reference: LlavaForConditionalGeneration, asked: list[EncodedQuestion]
) -> None:
    _, states = reference_hidden(reference, asked[0], [])
    influence_L = block_influence(frozen, asked[0])
    # transformers norms its last state, so the last layer's output is not among them.
    for layer_idx in range(NUM_LAYERS - 1):
        cosine = torch.cosine_similarity(states[layer_idx][0], states[layer_idx + 1][0], dim=-1)
        assert influence_L[layer_idx] == pytest.approx(1 - cosine.mean().item(), abs=1e-4)


def test_similarity_under_dropped_tokens_is_that_of_the_rows_that_stay(
    frozen: FrozenModel, reference: LlavaForConditionalGeneration, asked: list[EncodedQuestion]
) -> None:
    one = asked[0]
    kept = [2, 3, 40]
    plan = make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL, kept=kept)
    similarity_LR = layer_similarity(frozen, one, plan)
    rows = [
        row
        for row in range(len(one.prompt.token_ids))
        if row not in one.prompt.visual_rows or one.prompt.visual_rows.index(row) in kept
    ]
    decoder = reference.model.language_model
    inputs = decoder.embed_tokens(torch.tensor(one.prompt.token_ids))
    inputs[list(one.prompt.visual_rows)] = one.visual_VD
    with torch.no_grad():
        states = decoder(
            inputs_embeds=inputs[None, rows],
            position_ids=torch.tensor([rows]),
            output_hidden_states=True,
        ).hidden_states
    for layer_idx in range(NUM_LAYERS - 1):
        cosine_R = torch.cosine_similarity(states[layer_idx][0], states[layer_idx + 1][0], dim=-1)
        assert_close(similarity_LR[layer_idx].float(), cosine_R, atol=1e-4, rtol=0)


def test_decoding_under_the_dense_plan_gives_the_dense_answer(
    frozen: FrozenModel, answers: list[DenseAnswer]
) -> None:
    dense = make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL)
    found = frozen.decode([(answer, dense) for answer in answers])
    assert found == [answer.token_ids for answer in answers]


def test_decoding_under_a_plan_follows_its_own_words(
    frozen: FrozenModel, answers: list[DenseAnswer]
) -> None:
    plans = [
        make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL, kept=[1, 5, 9], skipped=[2]),
        make_plan(num_layers=NUM_LAYERS, num_visual=NUM_VISUAL, kept=[0, 3], layer_idx=1),
    ]
    trials = [(answer, plan) for answer in answers for plan in plans]
    found = frozen.decode(trials)
    assert found == [frozen.decode([trial])[0] for trial in trials]
    agree = [ids == answer.token_ids for ids, (answer, _) in zip(found, trials, strict=True)]
    assert agree == [divergence.agrees for divergence in frozen.compare(trials)]
    assert not all(agree)
    for ids, (answer, plan) in zip(found, trials, strict=True):
        (divergence,) = frozen.compare([(said(answer, ids), plan)])
        assert divergence.agrees


def test_more_tokens_are_never_worse_and_more_skips_never_better() -> None:
    grid = monotone(torch.rand(4, 6))
    assert bool((grid.diff(dim=1) <= 0).all())
    assert bool((grid.diff(dim=0) >= 0).all())


def test_the_grid_reaches_from_no_skip_to_all_candidates() -> None:
    assert skip_counts(16, num_candidates=8) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert skip_counts(16, num_candidates=15) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15]
    assert skip_counts(4, num_candidates=2) == [0, 1, 2]
