"""Models, probes, keys, request ids, headers and the page: all but chat itself."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading

import httpx2
import pytest

from allrounder.engine.fake import FakeRunner
from allrounder.engine.protocols import EngineState
from allrounder_service.api.auth import KeyRing
from tests.api.calls import QUESTION, chat_body, problem
from tests.api.keys import listening


class TenantRunner(FakeRunner):
    """Remembers who asked; the engine's own warm-up is nobody."""

    def __init__(self):
        super().__init__()
        self.tenants = []

    def prepare(self, request):
        if not request.id.startswith("warm-up"):
            self.tenants.append(request.tenant)
        return super().prepare(request)


async def test_the_model_list_says_what_the_engine_can_do(serve):
    async with serve() as served:
        listed = (await served.client.get("/v1/models")).json()
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert (model["id"], model["object"]) == ("fake", "model")
    assert model["geometry"]["layers"] == 4
    assert [each["name"] for each in model["strategies"]] == ["none", "fake"]
    assert 0 < model["smallest_budget"] < 1


async def test_a_loading_server_is_alive_but_not_ready(serve):
    loaded = threading.Event()

    def load():
        loaded.wait(5)
        return FakeRunner()

    async with serve(load=load) as served:
        assert (await served.client.get("/livez")).json() == {"status": "ok"}
        assert (await served.client.get("/health")).status_code == 200
        for method, path in [("GET", "/readyz"), ("GET", "/v1/models"), ("POST", "/v1/chat")]:
            response = await served.client.request(method, path)
            problem(response, 503, "loading")
            assert response.headers["retry-after"] == "5"
        assert (await served.client.get("/metrics")).status_code == 200
        loaded.set()
        await served.until(lambda: served.engine.status().state is EngineState.READY)
        assert (await served.client.get("/readyz")).json() == {"status": "ok"}


async def test_a_model_that_does_not_load_is_a_dead_engine(serve, caplog):
    def fail():
        raise RuntimeError("no weights")

    async with serve(load=fail) as served:
        await served.until(lambda: served.engine.status().state is EngineState.DEAD)
        problem(await served.client.get("/readyz"), 503, "engine_dead")
        problem(await served.client.get("/livez"), 503, "engine_dead")
        # The engine's thread reports its death before the event loop can log it.
        await served.until(lambda: "could not be started" in caplog.text)


async def test_draining_refuses_the_new_and_finishes_the_old(serve):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        old = asyncio.create_task(served.client.post("/v1/chat", json=chat_body()))
        await served.until_running(1)
        stopping = asyncio.create_task(served.engine.stop(5))
        await asyncio.sleep(0)
        problem(await served.client.get("/readyz"), 503, "draining")
        problem(await served.client.post("/v1/chat", json=chat_body()), 503, "draining")
        assert (await served.client.get("/livez")).status_code == 200
        assert (await old).json()["answer"] == QUESTION
        await stopping


async def test_keys_guard_v1_and_nothing_else(serve):
    runner = TenantRunner()
    async with serve(runner, api_keys="alpha, beta") as served:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "alpha"},
            {"Authorization": "Basic alpha"},
            {"Authorization": "Bearer"},
            {"Authorization": b"Bearer alph\xe4"},
            [("Authorization", "Bearer alpha"), ("Authorization", "Bearer alpha")],
        ):
            for method, path in (("POST", "/v1/chat"), ("POST", "/v1/plan"), ("GET", "/v1/models")):
                response = await served.client.request(method, path, headers=headers)
                problem(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
        for key in ("alpha", "beta"):
            headers = {"Authorization": f"Bearer {key}"}
            response = await served.client.post("/v1/chat", json=chat_body(), headers=headers)
            assert response.status_code == 200
        for path in ("/livez", "/health", "/readyz", "/metrics", "/", "/openapi.json"):
            assert (await served.client.get(path)).status_code == 200
        tenants = runner.tenants
        assert len(set(tenants)) == 2
        assert not any("alpha" in tenant or "beta" in tenant for tenant in tenants)


async def test_without_keys_everybody_is_the_public_tenant(serve):
    runner = TenantRunner()
    async with serve(runner) as served:
        headers = {"Authorization": "Bearer whatever"}
        await served.client.post("/v1/chat", json=chat_body(), headers=headers)
    assert runner.tenants == ["public"]


def test_a_key_ring_does_not_show_its_keys():
    assert "alpha" not in repr(vars(KeyRing(["alpha"])))


@pytest.mark.parametrize(
    ("given", "echoed"),
    [("abc-123", "abc-123"), ("a b\"<c>'", "abc"), ("x" * 500, "x" * 128)],
)
async def test_a_request_id_is_cleaned_and_echoed(serve, given, echoed):
    async with serve() as served:
        response = await served.client.get("/livez", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == echoed


async def test_every_answer_has_an_id_and_forbids_sniffing(serve):
    async with serve() as served:
        for path in ("/", "/livez", "/v1/models", "/nothing", "/metrics", "/docs"):
            response = await served.client.get(path)
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["x-request-id"].startswith("req-")
        streamed = await served.client.post("/v1/chat", json=chat_body(stream=True))
        assert streamed.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/metrics", "/v1/models", "/openapi.json", "/"]
)
async def test_head_is_answered_as_get_is_but_without_the_body(serve, path):
    async with (
        serve() as served,
        listening(served.app) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert get.content
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_the_page_names_the_endpoints_and_loads_nothing_from_outside(serve):
    async with serve() as served:
        response = await served.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for name in ("/v1/chat", "/v1/plan", "/v1/models", "/docs", "/metrics"):
        assert name in response.text
    assert "https://" not in response.text


async def test_each_request_is_logged_once_without_its_content(serve, caplog):
    caplog.set_level(logging.INFO)
    async with serve() as served:
        caplog.clear()
        await served.client.post("/v1/chat?key=hidden", json=chat_body(question="my secret"))
    (record,) = [each for each in caplog.records if each.name == "allrounder.access"]
    assert (record.endpoint, record.status, record.method) == ("/v1/chat", 200, "POST")
    logged = json.dumps(
        [vars(each) for each in caplog.records if each.name.startswith("allrounder")]
    )
    assert "secret" not in logged
    assert "hidden" not in logged


@pytest.mark.parametrize(
    "module", ["allrounder_service.main", "allrounder_service.api.endpoints", "allrounder.images"]
)
def test_importing_the_service_does_not_load_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
