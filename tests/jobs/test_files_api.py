"""The files API as clients use and abuse it, over a real socket and a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import shutil

import httpx2
import openai
import pytest

from tests.api.keys import add_key
from tests.jobs.serving import input_of, problem, request_line, serving

pytestmark = pytest.mark.timeout(60)

MISSING = "file-" + "x" * 24
HOSTILE = [
    "file-",
    "file-..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "file-" + "a" * 23 + "%0a",
    "file-" + "a" * 24 + "%00",
    "FILE-" + "a" * 24,
    "file-" + "a" * 5000,
    "file-" + "%C3%A9" * 24,
    "*",
]


@pytest.fixture
def serve(redis_url, tmp_path):
    return lambda **options: serving(redis_url, tmp_path, **options)


def form(data=b"{}\n", *, name="in.jsonl", purpose="batch", **fields):
    return {"files": {"file": (name, data)}, "data": {"purpose": purpose, **fields}}


async def test_the_sdk_uploads_lists_reads_and_deletes_a_file(serve):
    async with serve() as served, served.sdk() as sdk:
        data = input_of(3).encode()
        made = await sdk.files.create(
            file=("in put.jsonl", data),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert (made.object, made.bytes, made.purpose) == ("file", len(data), "batch")
        assert (made.filename, made.status) == ("in put.jsonl", "processed")
        assert made.expires_at == made.created_at + 3600
        assert await sdk.files.retrieve(made.id) == made
        assert [each.id async for each in sdk.files.list()] == [made.id]
        content = await sdk.files.content(made.id)
        assert content.read() == data
        deleted = await sdk.files.delete(made.id)
        assert (deleted.id, deleted.deleted) == (made.id, True)
        with pytest.raises(openai.NotFoundError):
            await sdk.files.retrieve(made.id)


async def test_the_blocking_sdk_does_the_same(serve):
    def use(url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
            made = sdk.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
            assert sdk.files.content(made.id).text == "{}\n"
            assert sdk.files.list(purpose="batch", order="asc", limit=1).data == [made]

    async with serve() as served:
        await asyncio.to_thread(use, served.url)


async def test_curl_uploads_with_the_file_first_and_downloads_what_it_sent(serve, tmp_path):
    assert shutil.which("curl")
    data = input_of(2000).encode()
    (tmp_path / "mine.jsonl").write_bytes(data)
    async with serve() as served:
        upload = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "-f", f"{served.url}/v1/files"),
            *("-F", f"file=@{tmp_path / 'mine.jsonl'}", "-F", "purpose=batch"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await upload.communicate()
        assert upload.returncode == 0
        (made,) = (await served.http.get("/v1/files")).json()["data"]
        assert made["id"].encode() in out
        answer = await served.http.get(f"/v1/files/{made['id']}/content")
    assert answer.content == data
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["content-type"] == "application/jsonl"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith('attachment; filename="mine.jsonl"')


async def test_a_large_file_arrives_whole_and_never_lies_elsewhere(serve, tmp_path):
    data = b"\n".join(request_line(f"{idx}", text="x" * 50_000).encode() for idx in range(200))
    async with serve() as served:
        made = await served.upload(data)
        assert made["bytes"] == len(data)
        stored = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
        blob = served.store.blob_path(hashlib.sha256(data).hexdigest())
        assert [path for path in stored if path.name != "volume"] == [blob]
        record = await served.jobs.file("public", made["id"])
        assert record.lines == 200


WRONG_FORMS = [
    (form(purpose="fine-tune"), "purpose"),
    ({"files": {"file": ("a", b"{}")}}, "purpose"),
    (form(b""), "file"),
    (form(b"\n \n\r\n"), "file"),
    ({"data": {"purpose": "batch", "file": "text"}, "files": {}}, None),
    ({"files": {"purpose": (None, "batch")}}, "file"),
    ({"files": {"purpose": (None, "batch"), "file": (None, "text")}}, "file"),
    ({"files": [("file", ("a", b"{}")), ("file", ("b", b"{}"))]}, "file"),
    ({"files": {"image": ("a", b"{}"), "purpose": (None, "batch")}}, "image"),
    (form(surprise="1"), "surprise"),
    (form(purpose="x" * 2000), "purpose"),
    (form(**{"expires_after[anchor]": "created_at"}), "expires_after.seconds"),
    (
        form(**{"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}),
        "expires_after.anchor",
    ),
    (
        form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}),
        "expires_after.seconds",
    ),
    (
        form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "1e4"}),
        "expires_after.seconds",
    ),
    (form(expires_after="soon"), "expires_after"),
]


async def test_a_wrong_field_is_a_400_that_names_it_and_stores_nothing(serve):
    async with serve() as served:
        for fields, param in WRONG_FORMS:
            response = await served.http.post("/v1/files", **fields)
            if param is None:
                assert problem(response, 415, "unsupported_content_type")
            else:
                problem(response, 400, "invalid_field", param)
            assert (await served.http.get("/v1/files")).json()["data"] == []
            assert list(served.store.drafts.iterdir()) == []
            assert [path for path in served.store.blobs.rglob("*") if path.is_file()] == []


async def test_limits_of_bytes_lines_and_line_length_hold(serve, monkeypatch):
    monkeypatch.setattr("allrounder_service.jobs.files.MAX_LINE_BYTES", 200_000)
    async with serve(max_file_bytes=300_000, max_batch_lines=50_000) as served:
        most = await served.http.post("/v1/files", **form(b"{}\n" * 50_000))
        assert most.status_code == 200
        many = await served.http.post("/v1/files", **form(b"{}\n" * 50_001))
        assert "50000 lines" in problem(many, 400, "invalid_field", "file")["message"]
        long = await served.http.post("/v1/files", **form(b"x" * 200_001))
        problem(long, 400, "invalid_field", "file")
        large = await served.http.post("/v1/files", **form(b"x\n" * 150_001))
        problem(large, 413, "body_too_large", "file")
        huge = await served.http.post("/v1/files", **form(b"x\n" * 500_000))
        problem(huge, 413, "body_too_large")
        assert list(served.store.drafts.iterdir()) == []


BROKEN_FORMS = [
    ("multipart/form-data", b"x"),
    ("multipart/form-data; boundary=" + "b" * 500, b"x"),
    ("multipart/form-data; boundary=b", b""),
    ("multipart/form-data; boundary=b", b"--c\r\n\r\n--c--"),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n--',
    ),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 50 + b"--b--\r\n",
    ),
]


async def test_a_broken_or_abusive_form_is_refused(serve):
    async with serve() as served:
        for content_type, body in BROKEN_FORMS:
            headers = {"content-type": content_type}
            response = await served.http.post("/v1/files", content=body, headers=headers)
            assert (response.status_code, response.json()["error"]["type"]) == (
                400,
                "invalid_request_error",
            )
            assert list(served.store.drafts.iterdir()) == []
            problem(await served.http.post("/v1/files", json={}), 415, "unsupported_content_type")


async def test_a_client_that_hangs_up_leaves_no_draft(serve):
    async def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield b"{}\n" * 20_000
            await asyncio.sleep(0.01)
        raise ConnectionAbortedError

    async with serve() as served:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        with pytest.raises(ConnectionAbortedError):
            await served.http.post("/v1/files", content=endless(), headers=headers)
        async with asyncio.timeout(10):
            while list(served.store.drafts.iterdir()):
                await asyncio.sleep(0.01)


FILENAMES = [
    ("../../etc/passwd", "passwd", "passwd"),
    ("C:\\temp\\in.jsonl", "in.jsonl", "in.jsonl"),
    ("naïve ☃.jsonl", "naïve ☃.jsonl", "na_ve__.jsonl"),
    ("..", "..", "file"),
    ("a" * 300, "a" * 255, "a" * 255),
]


async def test_a_filename_is_shown_and_never_a_path(serve):
    async with serve() as served:
        for name, shown, plain in FILENAMES:
            response = await served.http.post("/v1/files", **form(name=name))
            made = response.json()
            assert made["filename"] == shown
            answer = await served.http.get(f"/v1/files/{made['id']}/content")
            assert f'filename="{plain}"' in answer.headers["content-disposition"]


async def test_an_id_that_is_unknown_or_hostile_is_a_404(serve):
    async with serve() as served:
        for id in (MISSING, *HOSTILE):
            for answer in (
                await served.http.get(f"/v1/files/{id}"),
                await served.http.get(f"/v1/files/{id}/content"),
                await served.http.delete(f"/v1/files/{id}"),
                await served.http.get(f"/v1/batches/{id}"),
                await served.http.post(f"/v1/batches/{id}/cancel"),
            ):
                problem(answer, 404, "not_found")


async def test_pages_of_files_follow_each_other(serve):
    async with serve() as served, served.sdk() as sdk:
        ids = [(await served.upload(b"{}\n"))["id"] for _ in range(7)]
        newest = [each.id async for each in sdk.files.list(limit=3)]
        oldest = [each.id async for each in sdk.files.list(limit=2, order="asc")]
        assert sorted(newest) == sorted(oldest) == sorted(ids)
        assert len(newest) == len(oldest) == 7
        page = (await served.http.get("/v1/files", params={"limit": 3})).json()
        assert page["has_more"]
        assert (page["first_id"], page["last_id"]) == (newest[0], newest[2])
        assert [each async for each in sdk.files.list(purpose="batch_output")] == []


WRONG_QUERIES = [
    ({"limit": "0"}, "limit"),
    ({"limit": "10001"}, "limit"),
    ({"limit": "9" * 30}, "limit"),
    ({"limit": "many"}, "limit"),
    ({"order": "up"}, "order"),
    ({"after": MISSING}, "after"),
    ({"after": ""}, "after"),
    ({"before": MISSING}, "before"),
]


async def test_a_wrong_query_is_a_400_that_names_it(serve):
    async with serve() as served:
        for query, param in WRONG_QUERIES:
            problem(await served.http.get("/v1/files", params=query), 400, "invalid_field", param)


async def test_a_server_without_a_queue_says_so_and_only_to_those_with_a_key(serve):
    async with serve(with_jobs=False, keys=("key-one",)) as served:
        for path in ("/v1/files", "/v1/batches"):
            answer = await served.http.get(path)
            problem(answer, 503, "queue_not_configured")
        async with httpx2.AsyncClient(base_url=served.url) as stranger:
            problem(await stranger.get("/v1/files"), 401, "invalid_api_key")


async def test_a_volume_that_cannot_be_written_is_a_503(serve, tmp_path):
    async with serve() as served:
        (tmp_path / "files").rename(tmp_path / "away")
        (tmp_path / "files").write_text("not a folder")
        answer = await served.http.post("/v1/files", **form())
        assert int(answer.headers["retry-after"]) >= 1
        assert "folder" not in problem(answer, 503, "storage_unavailable")["message"]
        (tmp_path / "files").unlink()
        (tmp_path / "away").rename(tmp_path / "files")
        await served.upload(b"{}")


async def test_keys_of_one_tenant_share_its_files_and_another_tenant_sees_none(serve, tmp_path):
    path = tmp_path / "keys.json"
    first, second = add_key(path, tenant="acme"), add_key(path, tenant="acme")
    stranger = add_key(path, tenant="globex")
    async with serve(key_file=path) as served, served.as_tenant(first) as mine:
        file = await served.upload(input_of(1), client=mine)
        for key, ids in ((second, [file["id"]]), (stranger, [])):
            async with served.as_tenant(key) as http:
                listed = (await http.get("/v1/files")).json()["data"]
                assert [each["id"] for each in listed] == ids
