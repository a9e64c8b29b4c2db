"""Off and on, sampled or not, with a receiver or without: what a request never notices."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.errors import InternalError
from allrounder_service.tracing.otel import OtelTracer
from allrounder_service.tracing.trace import Trace, current, following, note_error
from tests.api.calls import chat_body
from tests.tracing.receiver import receiving

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[2]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"}


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, *arguments, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


# What the extra brings. FastAPI needs the API that these are built on, and may have it.
WITHOUT_THE_EXTRA = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
"""
OFF = """
import asyncio, sys
from tests.api.calls import chat_body
from tests.api.conftest import serving

async def main():
    async with serving() as served:
        assert (await served.client.post("/v1/chat", json=chat_body())).status_code == 200
        print(type(served.app.state.services.engine).__name__)
        print([each.cls.__name__ for each in served.app.user_middleware])

asyncio.run(main())
own = ("allrounder_service.tracing.otel", "allrounder_service.tracing.spans")
traces = (*own, "opentelemetry.sdk.trace")
print([name for name in sys.modules if name.startswith((*traces, "opentelemetry.exporter"))])
"""
ON = """
import sys
from allrounder_service.cli import main
sys.argv = ["allrounder", "serve", "--otlp-endpoint", "http://localhost:4318"]
main()
"""


@pytest.mark.parametrize("before", ["", WITHOUT_THE_EXTRA])
def test_without_an_endpoint_nothing_of_it_is_imported_or_in_the_way(before):
    ran = run(before + OFF)
    assert ran.returncode == 0, ran.stderr
    imported = [] if not before else ["opentelemetry.exporter"]
    assert ran.stdout.splitlines() == ["Engine", "['RequestContext', 'SlowBodies']", str(imported)]


def test_a_server_that_shall_trace_but_cannot_refuses_to_start():
    ran = run(WITHOUT_THE_EXTRA + ON)
    assert ran.returncode == 2
    assert "allrounder[otel]" in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_the_web_frameworks_own_telemetry_stays_off(serve, receiver, monkeypatch):
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    async with serve() as client:
        await client.post("/v1/chat", json=chat_body())
        await asyncio.sleep(0.2)
    assert receiver.paths == []


@pytest.mark.parametrize(
    ("settings", "headers", "num_traces"),
    [
        ({}, {}, 3),
        ({"trace_sample_ratio": 1}, {}, 3),
        ({"trace_sample_ratio": 0}, {}, 0),
        ({"trace_sample_ratio": 0}, SAMPLED, 3),
        ({"trace_sample_ratio": 1}, NOT_SAMPLED, 0),
    ],
)
async def test_the_caller_decides_what_is_sampled_and_the_ratio_where_it_does_not(
    serve, receiver, settings, headers, num_traces
):
    async with serve(otlp_endpoint=receiver.url, **settings) as client:
        for _ in range(3):
            response = await client.post("/v1/chat", json=chat_body(), headers=headers)
            assert response.status_code == 200
    assert len(receiver.roots) == num_traces


async def test_what_the_sdk_reads_from_the_environment_is_honoured(serve, receiver, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    async with serve(otlp_endpoint=receiver.url + "/") as client:
        await client.post("/v1/chat", json=chat_body())
    resource = receiver.root.resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("mine", "test")
    assert receiver.headers[0]["x-key"] == "abc"
    assert receiver.headers[0]["Content-Encoding"] == "gzip"
    assert receiver.paths == ["/v1/traces"]


@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER"])
async def test_the_environment_may_switch_it_off(serve, receiver, monkeypatch, name):
    monkeypatch.setenv(name, {"OTEL_SDK_DISABLED": "true"}.get(name, "always_off"))
    async with serve(otlp_endpoint=receiver.url) as client:
        assert (await client.post("/v1/chat", json=chat_body())).status_code == 200
    assert receiver.spans == []


async def test_spans_are_sent_while_the_server_runs(serve, receiver, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    async with serve(otlp_endpoint=receiver.url) as client:
        await client.post("/v1/chat", json=chat_body())
        async with asyncio.timeout(20):
            while len(receiver.spans) < 6:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("ratio", [0, 1])
async def test_the_access_log_names_the_trace(serve, receiver, caplog, ratio):
    caplog.set_level(logging.INFO, "allrounder.access")
    async with serve(otlp_endpoint=receiver.url, trace_sample_ratio=ratio) as client:
        await client.post("/v1/chat", json=chat_body(), headers=SAMPLED)
        await client.post("/v1/chat", json=chat_body(image="x"))
        await client.get("/livez")
    lines = [line for line in caplog.records if line.name == "allrounder.access"]
    chats = [vars(line)["trace_id"] for line in lines if vars(line)["endpoint"] == "/v1/chat"]
    assert chats[0] == TRACE
    assert len(chats[1]) == 32
    assert chats[1] != TRACE
    others = [line for line in lines if vars(line)["endpoint"] != "/v1/chat"]
    assert others
    assert not any("trace_id" in vars(line) for line in others)


async def answered_fast(client, count):
    began = time.monotonic()
    for _ in range(count):
        response = await client.post("/v1/chat", json=chat_body())
        assert response.status_code == 200
    return time.monotonic() - began


async def test_requests_do_not_notice_that_nobody_receives(serve, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    async with serve(otlp_endpoint=nobody, drain_seconds=1) as client:
        assert await answered_fast(client, 20) < 10
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 8


async def test_requests_do_not_wait_for_a_receiver_that_does_not_answer(serve, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    hold = threading.Event()
    with receiving(hold=hold) as receiver:
        async with serve(otlp_endpoint=receiver.url, drain_seconds=1) as client:
            assert await answered_fast(client, 20) < 10
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 8
        assert receiver.bodies


def test_what_goes_wrong_with_a_trace_goes_wrong_for_nobody_else(caplog):
    def fail(_trace):
        raise RuntimeError("no span for you")

    with following(Trace(trace_id=None, on_end=fail)) as nothing:
        assert current.get() is not None
        note_error(InternalError("x"))
    assert nothing is None
    assert current.get() is None
    assert "a trace could not be written" in caplog.text


@pytest.fixture(scope="module")
def tracer():
    tracer = OtelTracer("http://127.0.0.1:9", ratio=0, version="0")
    yield tracer
    asyncio.run(tracer.stop(1))


header = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True),
        st.binary(max_size=60).map(lambda data: data.decode("latin-1")),
    ),
    min_size=1,
    max_size=3,
)


@given(traceparent=header, tracestate=header)
def test_no_header_of_a_caller_breaks_a_request(tracer, traceparent, tracestate):
    headers = {"traceparent": traceparent, "tracestate": tracestate}
    trace = tracer.request("chat", headers, id=None)
    assert trace.trace_id is not None
    assert int(trace.trace_id, 16)
    assert len(trace.trace_id) == 32
