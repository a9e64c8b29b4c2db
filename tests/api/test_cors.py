"""Pages of other origins: let in by name, never with cookies."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from allrounder_service.settings import Settings
from tests.api.calls import chat_body

ORIGIN = "https://app.example.com"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


async def test_by_default_no_other_origin_is_let_in(serve):
    async with serve() as served:
        headers = {"Origin": ORIGIN}
        preflight = await served.client.options("/v1/chat", headers=headers | PREFLIGHT)
        answer = await served.client.get("/v1/models", headers=headers)
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("setting", [f"{ORIGIN}, http://localhost:3000", "*"])
async def test_a_preflight_needs_no_key_and_the_answer_may_be_read(serve, setting):
    settings = {"cors_origins": setting, "api_keys": "alpha", "requests_per_minute": 10}
    async with serve(**settings) as served:
        headers = {"Origin": ORIGIN}
        preflight = await served.client.options("/v1/chat", headers=headers | PREFLIGHT)
        assert preflight.status_code == 200
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        refused = await served.client.post("/v1/chat", json=chat_body(), headers=headers)
        assert refused.status_code == 401
        keyed = headers | {"Authorization": "Bearer alpha"}
        answer = await served.client.post("/v1/chat", json=chat_body(), headers=keyed)
    for response in (preflight, refused, answer):
        allowed = response.headers["access-control-allow-origin"]
        assert allowed == ("*" if setting == "*" else ORIGIN)
        assert "access-control-allow-credentials" not in response.headers
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert {"x-ratelimit-remaining-requests", "retry-after", "x-request-id"} <= set(
        exposed.split(", ")
    )


async def test_another_origin_is_not_let_in(serve):
    async with serve(cors_origins=ORIGIN) as served:
        headers = {"Origin": "https://evil.example"}
        preflight = await served.client.options("/v1/chat", headers=headers | PREFLIGHT)
        answer = await served.client.get("/v1/models", headers=headers)
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["allrounder.example.com", "https://*.example.com", "https://a/b", "null"]
)
def test_what_is_no_origin_is_refused_at_the_start(origin):
    with pytest.raises(ValidationError):
        Settings(cors_origins=origin)


def test_protection_without_keys_is_refused_at_the_start():
    with pytest.raises(ValidationError, match="api_keys"):
        Settings(protect_metrics=True)
