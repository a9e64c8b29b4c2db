"""/metrics as a scraper sees it."""

from __future__ import annotations

import threading

from app.engine.fake import FakeRunner
from tests.api.calls import chat_body


def series(text):
    return {line.rpartition(" ")[0] for line in text.splitlines() if line and line[0] != "#"}


async def test_a_chat_is_seen_in_the_metrics(serve):
    async with serve() as served:
        await served.client.post("/v1/chat", json=chat_body(budget=0.6))
        await served.client.post("/v1/chat", json=chat_body(budget=0.01))
        text = (await served.client.get("/metrics")).text
    assert 'allrounder_request_success_total{reason="stop"} 1.0' in text
    assert 'allrounder_admission_rejections_total{reason="budget_too_small"} 1.0' in text
    assert 'allrounder_http_requests_total{endpoint="/v1/chat",status="422"} 1.0' in text
    assert "allrounder_time_to_first_token_seconds_count 1.0" in text
    assert "allrounder_inter_token_latency_seconds_count 7.0" in text
    assert "allrounder_num_requests_running 0.0" in text


async def test_what_clients_make_up_creates_no_series(serve):
    async with serve() as served:
        await served.client.get("/nothing")
        await served.client.get("/livez")
        before = series((await served.client.get("/metrics")).text)
        for idx in range(200):
            await served.client.get(f"/nothing/{idx}", headers={"X-Request-Id": str(idx)})
            await served.client.request(f"M{idx}", "/nothing")
            await served.client.get(f"/livez?x={idx}")
        after = series((await served.client.get("/metrics")).text)
    grown = {each for each in after - before if 'endpoint="/metrics"' not in each}
    assert grown == set()


async def test_a_request_refused_while_loading_is_counted_and_a_probe_is_not(serve):
    loaded = threading.Event()

    def load():
        loaded.wait(10)
        return FakeRunner()

    async with serve(load=load) as served:
        try:
            assert await served.metric('engine_state{state="loading"}') == 1
            assert (await served.client.get("/readyz")).status_code == 503
            assert (await served.client.post("/v1/chat", json=chat_body())).status_code == 503
            refused = await served.metric('admission_rejections_total{reason="loading"}')
        finally:
            loaded.set()
    assert refused == 1
