"""/metrics as a scraper sees it."""

from __future__ import annotations

import threading

from allrounder.engine.fake import FakeRunner
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


async def test_a_chat_of_low_priority_moves_counters_and_no_latency(serve):
    async with serve() as served:
        await served.client.post("/v1/chat", json=chat_body(priority="batch"))
        assert await served.metric('request_success_total{reason="stop"}') == 1
        assert await served.metric("e2e_request_latency_seconds_count") == 0


async def test_a_page_that_has_not_changed_is_no_error(serve):
    async with serve() as served:
        tag = (await served.client.get("/")).headers["etag"]
        again = await served.client.get("/", headers={"If-None-Match": tag})
        assert again.status_code == 304
        assert await served.metric('http_requests_total{endpoint="/",status="304"}') == 1


async def test_a_server_without_a_queue_says_nothing_of_jobs(serve):
    async with serve(embedded_redis=False) as served:
        assert (await served.client.get("/v1/files")).status_code == 503
        text = (await served.client.get("/metrics")).text
    assert 'allrounder_http_requests_total{endpoint="/v1/files",status="503"} 1.0' in text
    assert "allrounder_jobs_" not in text


async def test_a_queue_that_is_away_is_told_from_none(serve, tmp_path):
    async with serve(redis_url=f"unix://{tmp_path}/nothing") as served:
        text = (await served.client.get("/metrics")).text
    assert "allrounder_jobs_redis_up 0.0" in text
    assert "allrounder_jobs_running" not in text


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
