"""One error, the status and param of the endpoint that answers it."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from fastapi.routing import APIRoute

from allrounder.core.budget import FlopsShare
from allrounder.errors import BudgetTooSmall, ContextLengthExceeded, InvalidField, QueueFull
from allrounder_service.api.deps import get_services
from allrounder_service.api.endpoints import ENDPOINTS
from allrounder_service.api.intake.api_request import ChatLimits, Endpoint, parse_chat
from allrounder_service.api.intake.completion_body import parse_completion
from allrounder_service.api.problems import error_answer
from tests.api.calls import chat_body, completion_body

LIMITS = ChatLimits()
CHAT = parse_chat(chat_body(), LIMITS)
COMPLETION = parse_completion(completion_body(max_completion_tokens=5), LIMITS)
OPENAI = [Endpoint.COMPLETIONS, "/v1/files", "/v1/files/{file_id}", "/v1/batches"]
OWN = [Endpoint.CHAT, Endpoint.PLAN, "/v1/models", ""]


@pytest.mark.parametrize("kind", [InvalidField, BudgetTooSmall])
@pytest.mark.parametrize(
    ("endpoint", "status"), [(each, 400) for each in OPENAI] + [(each, 422) for each in OWN]
)
def test_an_invalid_field_has_the_status_of_its_endpoint_and_one_code(kind, endpoint, status):
    answer = error_answer(kind("wrong", param="budget"), endpoint=endpoint)
    error = answer.body["error"]
    assert answer.status == status
    assert (error["code"], error["param"]) == (kind.code, "budget")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("endpoint", OPENAI + OWN)
def test_any_other_error_has_one_status_everywhere(endpoint):
    answer = error_answer(QueueFull("full", retry_after_seconds=2.5), endpoint=endpoint)
    assert (answer.status, answer.headers) == (429, {"Retry-After": "3"})


@pytest.mark.parametrize(
    ("param", "shown"),
    [
        ("question", "messages"),
        ("image", "messages"),
        ("images", "messages"),
        ("max_tokens", "max_completion_tokens"),
        ("budget.tokens", "budget.tokens"),
        (None, None),
    ],
)
@pytest.mark.parametrize("kind", [InvalidField, ContextLengthExceeded])
def test_what_the_engine_says_of_a_completion_names_the_callers_own_field(kind, param, shown):
    error = kind("too long", param=param)
    answer = error_answer(error, endpoint=Endpoint.COMPLETIONS, asked=COMPLETION)
    assert (answer.status, answer.body["error"]["param"]) == (400, shown)
    own = error_answer(error, endpoint=Endpoint.CHAT, asked=CHAT)
    assert (own.status, own.body["error"]["param"]) == (kind.status, param)
    assert error.param == param


def test_before_a_body_is_parsed_a_param_is_what_the_caller_wrote():
    unknown = InvalidField("question: unknown field", param="question")
    answer = error_answer(unknown, endpoint=Endpoint.COMPLETIONS)
    assert answer.body["error"]["param"] == "question"


def test_one_request_serves_every_endpoint():
    plan = parse_chat(chat_body(), LIMITS, endpoint=Endpoint.PLAN)
    assert plan == replace(CHAT, endpoint=Endpoint.PLAN)
    made = [
        each.to_chat_request((), id="x", arrival=1.0, tenant="t")
        for each in (CHAT, plan, COMPLETION)
    ]
    assert [each.plan_only for each in made] == [False, True, False]
    assert {each.budget.form for each in made} == {FlopsShare(share=1.0)}


def dependencies(dependant):
    for each in dependant.dependencies:
        yield each.call
        yield from dependencies(each)


def test_no_dependency_of_an_endpoint_runs_in_the_thread_pool():
    routes = [each for api in ENDPOINTS for each in api.routes if isinstance(each, APIRoute)]
    found = [call for route in routes for call in dependencies(route.dependant)]
    assert get_services in found
    for call in found:
        function = call if inspect.isroutine(call) else type(call).__call__
        assert inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
