"""The batch API from a client's side, over a real socket and a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import openai
import pytest

from allrounder_service.jobs.queue import QueueLimits
from allrounder_service.jobs.redis_keys import key
from tests.jobs.servers import running_server
from tests.jobs.serving import ENDPOINT, Executor, input_of, problem, request_line, serving

pytestmark = pytest.mark.timeout(120)

MISSING = "batch_" + "x" * 24


@pytest.fixture
def serve(redis_url, tmp_path):
    return lambda **options: serving(redis_url, tmp_path, **options)


def order(file_id, **fields):
    return {
        "input_file_id": file_id,
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        **fields,
    }


async def test_the_sdk_drives_a_batch_to_its_output_and_error_files(serve):
    data = "\n".join([input_of(30), request_line("bad", status=400), request_line("ugly")])
    async with serve() as served, served.sdk() as sdk:
        file = await sdk.files.create(file=("in.jsonl", data.encode()), purpose="batch")
        made = await sdk.batches.create(
            input_file_id=file.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"night": "one"},
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert (made.object, made.endpoint, made.completion_window) == ("batch", ENDPOINT, "24h")
        assert made.request_counts.total == 32
        assert made.expires_at - made.created_at in (86_400, 86_401)
        async with Executor(served.queue, served.store).running():
            await served.until(made.id)
        done = await sdk.batches.retrieve(made.id)
        assert (done.status, done.errors, done.metadata) == ("completed", None, {"night": "one"})
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (32, 31, 1)
        assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
        assert (done.usage.input_tokens, done.usage.output_tokens) == (96, 64)
        output = [
            json.loads(line) for line in (await sdk.files.content(done.output_file_id)).iter_lines()
        ]
        (error,) = await served.content(done.error_file_id)
        assert [line["custom_id"] for line in output] == [f"line-{idx}" for idx in range(30)] + [
            "ugly"
        ]
        assert set(output[0]) == {"id", "custom_id", "response", "error"}
        assert output[7]["response"]["body"]["echo"] == {"idx": 7}
        assert (output[7]["response"]["status_code"], output[7]["error"]) == (200, None)
        assert error["custom_id"] == "bad"
        assert (error["response"]["status_code"], error["error"]) == (400, None)
        made_files = [each async for each in sdk.files.list(purpose="batch_output")]
        assert {each.id for each in made_files} == {done.output_file_id, done.error_file_id}
        assert {each.expires_at - each.created_at for each in made_files} == {7200}
        assert [each.id async for each in sdk.batches.list()] == [made.id]
        await served.settled()


async def test_the_blocking_sdk_cancels_a_batch(serve):
    def use(url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
            file = sdk.files.create(file=("in.jsonl", input_of(5).encode()), purpose="batch")
            made = sdk.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            cancelled = sdk.batches.cancel(made.id)
            assert cancelled.status in ("cancelling", "cancelled")
            return made.id

    async with serve() as served:
        id = await asyncio.to_thread(use, served.url)
        done = await served.until(id)
        assert (done["status"], done["output_file_id"]) == ("cancelled", None)
        assert done["request_counts"] == {"total": 5, "completed": 0, "failed": 5}
        lines = await served.content(done["error_file_id"])
        assert [line["error"]["code"] for line in lines] == ["batch_cancelled"] * 5
        assert {line["response"] for line in lines} == {None}
        again = await served.http.post(f"/v1/batches/{id}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
        await served.settled()


async def test_faults_of_lines_fail_the_whole_batch_and_name_each_line(serve):
    good = request_line("a")
    data = "\n".join([good, "{", good, "", request_line("b", stream=True)])
    async with serve() as served:
        made = await served.create(data)
        done = await served.until(made["id"])
        assert done["status"] == "failed"
        assert done["failed_at"] >= done["created_at"]
        assert done["errors"]["object"] == "list"
        assert [(each["code"], each["line"]) for each in done["errors"]["data"]] == [
            ("invalid_json_line", 2),
            ("duplicate_custom_id", 3),
            ("invalid_body", 5),
        ]
        assert done["errors"]["data"][2]["param"] == "body.stream"
        assert (done["output_file_id"], done["error_file_id"]) == (None, None)
        many = await served.until((await served.create("x\n" * 1000))["id"])
        assert len(many["errors"]["data"]) == 100
        problem(await served.http.post(f"/v1/batches/{made['id']}/cancel"), 409, "batch_ended")
        await served.settled()


async def test_a_batch_whose_window_ends_keeps_what_was_answered(serve):
    async with serve() as served:
        data = "\n".join(request_line(f"line-{idx}") for idx in range(400))
        executor = Executor(served.queue, served.store, seconds=0.02, at_once=4)
        async with executor.running():
            made = await served.create(data, completion_window="2s")
            done = await served.until(made["id"])
        assert done["status"] == "expired"
        assert done["expired_at"] >= done["expires_at"]
        output = await served.content(done["output_file_id"])
        error = await served.content(done["error_file_id"])
        assert {line["error"]["code"] for line in error} == {"batch_expired"}
        seen = Counter(line["custom_id"] for line in output + error)
        assert seen == Counter(f"line-{idx}" for idx in range(400))
        assert done["request_counts"] == {
            "total": 400,
            "completed": len(output),
            "failed": len(error),
        }
        assert executor.num_done == len(output)
        await served.settled()


WRONG_ORDERS: list[tuple[dict[str, Any], str]] = [
    ({"input_file_id": "file-" + "x" * 24}, "input_file_id"),
    ({"input_file_id": "../../etc/passwd"}, "input_file_id"),
    ({"input_file_id": 7}, "input_file_id"),
    ({"input_file_id": None}, "input_file_id"),
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"completion_window": "8d"}, "completion_window"),
    ({"completion_window": "0h"}, "completion_window"),
    ({"completion_window": "24"}, "completion_window"),
    ({"completion_window": 24}, "completion_window"),
    ({"metadata": {f"k{idx}": "v" for idx in range(17)}}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": []}, "metadata"),
    ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after.seconds"),
    (
        {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
        "output_expires_after.seconds",
    ),
    ({"webhook": "https://example.com"}, "webhook"),
]


async def test_a_wrong_field_is_a_400_that_names_it(serve):
    async with serve() as served:
        file = await served.upload(input_of(2))
        for fields, param in WRONG_ORDERS:
            response = await served.http.post("/v1/batches", json=order(file["id"], **fields))
            problem(response, 400, "invalid_field", param)
        long_key = {"metadata": {"k" * 65: "v"}}
        response = await served.http.post("/v1/batches", json=order(file["id"], **long_key))
        assert response.json()["error"]["param"].startswith("metadata")
        for headers in ({"Idempotency-Key": "a b"}, {"Idempotency-Key": "k" * 256}):
            response = await served.http.post(
                "/v1/batches", json=order(file["id"]), headers=headers
            )
            problem(response, 400, "invalid_field", "Idempotency-Key")
        for query, param in [({"limit": "101"}, "limit"), ({"after": MISSING}, "after")]:
            response = await served.http.get("/v1/batches", params=query)
            problem(response, 400, "invalid_field", param)
        response = await served.http.post("/v1/batches", content=b"{", headers=JSON)
        problem(response, 400, "malformed_body")
        response = await served.http.post("/v1/batches", data={"a": "b"})
        problem(response, 415, "unsupported_content_type")
        assert (await served.http.get("/v1/batches")).json()["data"] == []


JSON = {"content-type": "application/json"}


async def test_an_idempotency_key_makes_one_batch_and_takes_no_other_order(serve):
    async with serve() as served:
        file = await served.upload(input_of(2))
        headers = {"Idempotency-Key": "night-1"}
        answers = [
            await served.http.post("/v1/batches", json=order(file["id"]), headers=headers)
            for _ in range(3)
        ]
        assert len({answer.json()["id"] for answer in answers}) == 1
        other = order(file["id"], metadata={"a": "b"})
        response = await served.http.post("/v1/batches", json=other, headers=headers)
        problem(response, 409, "idempotency_key_reused")
        await served.http.delete(f"/v1/files/{file['id']}")
        again = await served.http.post("/v1/batches", json=order(file["id"]), headers=headers)
        assert again.json()["id"] == answers[0].json()["id"]
        assert len((await served.http.get("/v1/batches")).json()["data"]) == 1


async def test_a_full_queue_refuses_batches_and_takes_them_when_there_is_room(serve):
    limits = QueueLimits(max_lines=25, max_tenant_lines=10)
    async with serve(queue=limits, keys=("key-one", "key-two", "key-three")) as served:
        first = await served.create(input_of(8))
        file = await served.upload(input_of(3))
        full = await served.http.post("/v1/batches", json=order(file["id"]))
        problem(full, 429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        large = await served.upload(input_of(11))
        never = await served.http.post("/v1/batches", json=order(large["id"]))
        problem(never, 400, "invalid_field", "input_file_id")
        async with served.as_tenant("key-two") as other:
            await served.create(input_of(9), client=other)
        async with served.as_tenant("key-three") as other:
            theirs = await served.upload(input_of(9), client=other)
            answer = await other.post("/v1/batches", json=order(theirs["id"]))
            problem(answer, 429, "queue_full")
        await served.http.post(f"/v1/batches/{first['id']}/cancel")
        await served.until(first["id"])
        room = await served.http.post("/v1/batches", json=order(file["id"]))
        assert room.status_code == 200


async def test_pages_of_batches_follow_each_other_newest_first(serve):
    async with serve() as served, served.sdk() as sdk:
        made = [(await served.create(input_of(1)))["id"] for _ in range(5)]
        listed = [each.id async for each in sdk.batches.list(limit=2)]
        assert sorted(listed) == sorted(made)
        page = (await served.http.get("/v1/batches", params={"limit": 5})).json()
        assert (page["has_more"], page["object"]) == (False, "list")
        times = [each["created_at"] for each in page["data"]]
        assert times == sorted(times, reverse=True)


async def test_another_tenants_things_are_as_if_they_did_not_exist(serve):
    async with (
        serve(keys=("key-one", "key-two")) as served,
        served.as_tenant("key-two") as stranger,
        Executor(served.queue, served.store).running(),
    ):
        headers = {"Idempotency-Key": "shared"}
        mine = await served.create(input_of(2), headers=headers)
        done = await served.until(mine["id"])
        output, input_id = done["output_file_id"], mine["input_file_id"]
        missing_file, missing = "file-" + "x" * 24, MISSING
        for method, path, own, none in [
            ("GET", "/v1/files/{}", input_id, missing_file),
            ("GET", "/v1/files/{}", output, missing_file),
            ("GET", "/v1/files/{}/content", output, missing_file),
            ("DELETE", "/v1/files/{}", input_id, missing_file),
            ("GET", "/v1/batches/{}", mine["id"], missing),
            ("POST", "/v1/batches/{}/cancel", mine["id"], missing),
            ("GET", "/v1/files?after={}", input_id, missing_file),
            ("GET", "/v1/batches?after={}", mine["id"], missing),
        ]:
            theirs = await stranger.request(method, path.format(own))
            nobodys = await stranger.request(method, path.format(none))
            assert theirs.status_code in (400, 404)
            assert (theirs.status_code, theirs.content) == (nobodys.status_code, nobodys.content)
        for id in (input_id, missing_file):
            problem(
                await stranger.post("/v1/batches", json=order(id)),
                *(400, "invalid_field", "input_file_id"),
            )
        assert (await stranger.get("/v1/files")).json()["data"] == []
        assert (await stranger.get("/v1/batches")).json()["data"] == []
        own = await served.create(input_of(2), client=stranger, headers=headers)
        assert own["id"] != mine["id"]
        assert (await served.http.get(f"/v1/files/{output}/content")).status_code == 200


async def test_a_batch_goes_on_when_its_input_is_deleted_and_lets_go_of_it_at_the_end(serve):
    async with serve() as served:
        made = await served.create(input_of(4))
        await served.http.delete(f"/v1/files/{made['input_file_id']}")
        record = await served.queue.batch(made["id"])
        blob = key("blob", record.input_sha256)
        assert await served.queue.client.smembers(blob) == {made["id"]}
        async with Executor(served.queue, served.store).running():
            done = await served.until(made["id"])
        assert done["request_counts"]["completed"] == 4
        await served.settled()
        assert await served.queue.client.exists(blob) == 0


async def test_many_lines_are_submitted_in_chunks_and_answered_once_each(serve):
    async with serve() as served:
        made = await served.create(input_of(1203))
        async with Executor(served.queue, served.store, at_once=64).running():
            done = await served.until(made["id"])
        output = await served.content(done["output_file_id"])
        assert [line["custom_id"] for line in output] == [f"line-{idx}" for idx in range(1203)]
        assert len({line["id"] for line in output}) == 1203
        await served.settled()


async def test_a_batch_and_its_files_are_forgotten_when_their_time_is_over(serve):
    limits = QueueLimits(retention_seconds=2, lease_ms=1500)
    async with serve(queue=limits) as served, Executor(served.queue, served.store).running():
        made = await served.create(input_of(2))
        done = await served.until(made["id"])
        async with asyncio.timeout(30):
            while (await served.http.get(f"/v1/batches/{made['id']}")).status_code == 200:
                await asyncio.sleep(0.1)
            while (await served.http.get("/v1/files")).json()["data"]:
                await asyncio.sleep(0.1)
        gone = await served.http.get(f"/v1/files/{done['output_file_id']}/content")
        problem(gone, 404, "not_found")
        assert (await served.http.get("/v1/batches")).json()["data"] == []
        names = [name async for name in served.queue.client.scan_iter(match=key("blob", "*"))]
        assert names == []


async def test_without_redis_every_route_says_so_and_work_goes_on_afterwards(tmp_path):
    with running_server("redis-server", tmp_path / "redis") as redis:
        async with serving(redis.url, tmp_path) as served:
            made = await served.create(input_of(3))
            redis.kill()
            for answer in await asyncio.gather(
                served.http.get("/v1/files"),
                served.http.get(f"/v1/files/{made['input_file_id']}"),
                served.http.delete(f"/v1/files/{made['input_file_id']}"),
                served.http.post("/v1/files", **FORM),
                served.http.get("/v1/batches"),
                served.http.post("/v1/batches", json=order(made["input_file_id"])),
                served.http.get(f"/v1/batches/{made['id']}"),
                served.http.post(f"/v1/batches/{made['id']}/cancel"),
            ):
                problem(answer, 503, "queue_unavailable")
                assert int(answer.headers["retry-after"]) >= 1
            redis.start()
            async with Executor(served.queue, served.store).running():
                done = await served.until(made["id"])
            assert done["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
            await served.settled()


FORM = {"files": {"file": ("in.jsonl", b"{}")}, "data": {"purpose": "batch"}}
