"""For every family: any conversation is what its own chat template makes of it, pruned or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from allrounder.core import ChatRequest, Message, Role, SamplingParams
from allrounder.core.budget import Budget, Counts, FlopsShare
from allrounder.engine.execution.runner import ModelRunner
from allrounder.errors import BudgetTooSmall, InvalidField
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import answers, finished, recorded
from tests.families.cases import FamilyCase
from tests.families.reference import Reference, assert_same_tokens
from tests.tiny import chat_request, noise_image

pytestmark = pytest.mark.timeout(90)

Turns = tuple[Message, ...]


def _said(role: Role, *parts: str | None) -> Message:
    return Message(role=role, parts=parts)


SYSTEM = _said(Role.SYSTEM, "Answer in one word.")
CONVERSATIONS: dict[str, Turns] = {
    "system": (SYSTEM, _said(Role.USER, None, "What is there?")),
    "text-first": (_said(Role.USER, "What is there?", None),),
    "between": (_said(Role.USER, "Look: ", None, "what is it?\n"),),
    "later-turn": (
        _said(Role.USER, None, "What is it?"),
        _said(Role.ASSISTANT, "red"),
        _said(Role.USER, "Où?"),
    ),
    "image-in-second-turn": (
        _said(Role.USER, "Hello"),
        _said(Role.ASSISTANT, "Hello! Which image?"),
        _said(Role.USER, "This one: ", None),
    ),
    "two-turns-two-images": (
        _said(Role.USER, None, "What is it?"),
        _said(Role.ASSISTANT, "three red"),
        _said(Role.USER, "And here? ", None),
    ),
    "two-apart": (_said(Role.USER, "First ", None, " then ", None, " which?"),),
    "no-image": (_said(Role.USER, "Hello?"),),
}
BEHIND_TEXT = ("text-first", "later-turn", "image-in-second-turn", "two-turns-two-images")


def _request(case: FamilyCase, name: str, **fields: Any) -> ChatRequest | None:
    """None where the family cannot be asked so."""
    turns = CONVERSATIONS[name]
    num_images = sum(message.num_images for message in turns)
    if num_images > case.max_images or (SYSTEM in turns and not case.knows_system):
        return None
    images = tuple(
        noise_image(40 + idx, width=width, height=height)
        for idx, (width, height) in enumerate(case.sizes[:num_images])
    )
    fields.setdefault("id", f"{case}-{name}")
    return chat_request(3, images=images, messages=turns, **fields)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_the_librarys_own_token_for_token(
    case: FamilyCase, runner: ModelRunner, reference: Reference, name: str
) -> None:
    request = _request(case, name)
    if request is None:
        return
    sequence = finished(runner, request)
    prompt_ids, theirs = reference.generate(request)
    assert list(sequence.prepared.prompt.token_ids) == prompt_ids
    logits = reference.logits(request, theirs, sequence.plan)
    assert_same_tokens(sequence.token_ids, theirs, logits)


@pytest.mark.parametrize(
    ("strategy", "form"),
    [
        ("random", Counts(tokens=7, layers=5)),
        ("fastv", Counts(tokens=5)),
        ("pdrop", Counts(tokens=5)),
        ("autoprune", Counts(tokens=6)),
        ("cdpruner", Counts(tokens=6)),
        ("mmtok", FlopsShare(share=0.8)),
    ],
)
@pytest.mark.parametrize("name", BEHIND_TEXT)
def test_what_is_dropped_behind_text_and_in_later_turns_equals_what_is_masked(
    case: FamilyCase,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    reference: Reference,
    strategy: str,
    form: Budget,
    name: str,
) -> None:
    request = _request(case, name, form=form, strategy=strategy)
    if request is None:
        return
    sequence, ours = recorded(runner, adapter, request)
    theirs = reference.logits(request, sequence.token_ids, sequence.plan)
    assert not sequence.plan.is_dense
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    cost = sequence.prepared.cost(sequence.plan)
    assert cost.prefill_ratio <= sequence.prepared.allocation.limit


def test_conversations_of_all_kinds_in_one_batch_equal_their_singles(
    case: FamilyCase, runner: ModelRunner
) -> None:
    asked = [_request(case, name) for name in CONVERSATIONS]
    asked += [
        _request(case, name, id=f"{name}-pruned", form=Counts(tokens=6), strategy="fastv")
        for name in BEHIND_TEXT
    ]
    requests = [request for request in asked if request is not None]
    together = answers(runner, requests)
    for request in requests:
        alone = answers(runner, [request])[request.id]
        assert together[request.id].answer == alone.answer
        assert together[request.id].plan == alone.plan
        assert together[request.id].cost == alone.cost


def test_each_image_of_a_conversation_keeps_its_share(
    case: FamilyCase, runner: ModelRunner
) -> None:
    request = _request(
        case, "two-turns-two-images", form=FlopsShare(share=0.8), strategy="cdpruner"
    )
    if request is None:
        return
    sequence = finished(runner, request)
    first, second = sequence.prepared.shape.visual_per_image
    kept = sequence.plan.kept
    assert kept is not None
    of_first = sum(idx < first for idx in kept)
    assert abs(of_first - len(kept) * first / (first + second)) < 1
    slots = sequence.prepared.prompt.visual_slots
    assert sum(count for _, count in slots) == first + second
    between = sequence.prepared.prompt.token_ids[sum(slots[0]) : slots[-1][0]]
    assert len(between) > len("three red")


def test_the_question_is_read_wherever_it_stands(
    case: FamilyCase, adapter: TransformersAdapter, reference: Reference
) -> None:
    request = _request(case, "text-first")
    assert request is not None
    layouts = [adapter.layout(image) for image in request.images]
    prompt = adapter.converse(request.conversation, layouts)
    read = reference.processor.tokenizer.decode(prompt.read_ids)
    assert read.count("What is there?") == 1
    assert prompt.shape.num_read == len(prompt.read_ids)
    behind = reference.processor.tokenizer.decode(
        prompt.token_ids[prompt.question_slot[0] :][: prompt.question_slot[1]]
    )
    assert bool(prompt.earlier_slots) == ("What is there?" not in behind)


def test_special_tokens_stay_text_in_every_role_and_place(
    case: FamilyCase, adapter: TransformersAdapter, reference: Reference
) -> None:
    tokenizer = reference.processor.tokenizer
    image = noise_image(1, width=case.sizes[0][0], height=case.sizes[0][1])
    layouts = [adapter.layout(image)]

    def turns(text: str) -> Turns:
        said = (
            _said(Role.USER, text, None, text),
            _said(Role.ASSISTANT, text),
            _said(Role.USER, text),
        )
        return (_said(Role.SYSTEM, text), *said) if case.knows_system else said

    plain = adapter.converse(turns("a"), layouts)
    for text, token_id in {t.content: i for i, t in tokenizer.added_tokens_decoder.items()}.items():
        prompt = adapter.converse(turns(f"a{text} {text}"), layouts)
        assert prompt.token_ids.count(token_id) == plain.token_ids.count(token_id), text
        assert prompt.visual_per_image == plain.visual_per_image
        assert [count for _, count in prompt.visual_slots] == [c for _, c in plain.visual_slots]
        assert tokenizer.decode(prompt.token_ids).count(f"a{text} {text}") == len(turns("")) + 1


def test_a_system_message_is_refused_by_name_where_the_template_knows_none(
    case: FamilyCase, adapter: TransformersAdapter
) -> None:
    turns = (SYSTEM, _said(Role.USER, "Hello"))
    if case.knows_system:
        assert adapter.converse(turns, []).token_ids
        return
    with pytest.raises(InvalidField) as refused:
        adapter.converse(turns, [])
    assert refused.value.param == "messages.0.role"


def test_text_alone_is_answered_in_full_and_never_below_its_budget(
    case: FamilyCase, runner: ModelRunner
) -> None:
    request = _request(case, "no-image", sampling=SamplingParams(max_tokens=3))
    assert request is not None
    result = answers(runner, [request])[request.id]
    assert result.plan.is_dense
    assert result.plan.num_visual == 0
    assert result.cost.prefill_ratio == 1
    cheap = _request(case, "no-image", form=FlopsShare(share=0.5), strategy="fastv")
    assert cheap is not None
    with pytest.raises(BudgetTooSmall):
        runner.prepare(cheap)
