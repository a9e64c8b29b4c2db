"""Raw bytes on real sockets: what a client may not do to a connection."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress

import pytest

from allrounder.engine.fake import FakeRunner
from tests.api.calls import chat_body, completion_body
from tests.api.keys import listening

pytestmark = pytest.mark.timeout(60)

HEAD = b"POST /v1/chat HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"
PATIENCE = 0.4
LATE = 15


@pytest.fixture
async def port(serve):
    async with (
        serve(slow_client_seconds=PATIENCE) as served,
        listening(served.app, head_seconds=PATIENCE) as port,
    ):
        yield port


async def until_closed(reader):
    """-> all that comes, also if the end is a reset."""
    found = bytearray()
    async with asyncio.timeout(LATE):
        try:
            while data := await reader.read(65_536):
                found += data
        except ConnectionError:
            pass
    return bytes(found)


async def exchange(port, *parts, pause=0.0):
    """Sends the parts with pauses between them -> all that comes back, and the seconds it took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.monotonic()
    reading = asyncio.create_task(until_closed(reader))
    for part in parts:
        if reading.done():
            break
        with suppress(ConnectionError):
            writer.write(part)
            await writer.drain()
        await asyncio.sleep(pause)
    answer = await reading
    writer.close()
    return answer, time.monotonic() - started


def refusal(answer):
    """-> status, code of the one answer; asserts that it is ours and ends the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in head.lower()
    assert b"nosniff" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("num_bytes", [9_000, 60_000])
async def test_a_large_header_is_a_431_in_one_piece_or_in_many(port, num_bytes):
    head = b"GET /livez HTTP/1.1\r\nHost: test\r\nX-Large: " + b"x" * num_bytes
    whole, _ = await exchange(port, head + b"\r\n\r\n")
    assert refusal(whole) == (431, "headers_too_large")
    pieces = [head[at : at + 1500] for at in range(0, 9_000, 1500)]
    parts, _ = await exchange(port, *pieces, pause=0.002)
    assert refusal(parts) == (431, "headers_too_large")


async def test_many_headers_and_a_long_address_count_as_well(port):
    many = b"".join(b"X-%d: x\r\n" % idx for idx in range(1500))
    answer, _ = await exchange(port, b"GET /livez HTTP/1.1\r\nHost: test\r\n" + many + b"\r\n")
    assert refusal(answer) == (431, "headers_too_large")
    long = b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n"
    answer, _ = await exchange(port, long)
    assert refusal(answer) == (431, "headers_too_large")


async def test_a_header_under_the_limit_passes(port):
    answer, _ = await exchange(
        port, GET[:-2] + b"Connection: close\r\nX: " + b"x" * 7000 + b"\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + GET,
        HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody!" + GET,
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: +4\r\n\r\nbody",
        HEAD + b"Host: other\r\n\r\n",
        b"POST /v1/chat HTTP/1.1\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        HEAD + b" folded\x00: x\r\n\r\n",
    ],
)
async def test_an_ambiguous_or_broken_head_is_one_400_and_nothing_after_it_is_read(port, head):
    answer, seconds = await exchange(port, head + b"\r\n\r\n")
    assert refusal(answer) == (400, "bad_request")
    assert seconds < LATE / 2


async def test_a_head_that_drips_is_a_408_when_its_time_is_over(port):
    parts = [bytes([byte]) for byte in HEAD]
    answer, seconds = await exchange(port, *parts, pause=0.02)
    assert refusal(answer) == (408, "request_timeout")
    assert seconds < LATE / 2


@pytest.mark.parametrize("start", [b"", b"\r\n", GET, GET + b"\r\n", GET + GET[:5]])
async def test_a_silent_connection_is_closed(port, start):
    answer, seconds = await exchange(port, start)
    assert answer.count(b"HTTP/1.1 200") == start.count(GET)
    assert seconds < LATE / 2


async def test_a_body_that_stops_is_a_408(port):
    answer, seconds = await exchange(port, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert refusal(answer) == (408, "request_timeout")
    assert PATIENCE / 2 < seconds < LATE / 2


async def test_a_body_that_drips_is_a_408_however_often_a_byte_comes(port):
    start = HEAD + b"Content-Length: 1000\r\n\r\n"
    answer, seconds = await exchange(port, start, *[b"x"] * 900, pause=0.02)
    assert refusal(answer) == (408, "request_timeout")
    assert seconds < LATE


async def test_a_body_that_is_slow_but_steady_is_read(port):
    body = json.dumps(chat_body(question="x" * 8000)).encode()
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    start = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer, seconds = await exchange(port, start, *parts, pause=2 * PATIENCE / len(parts))
    assert seconds > PATIENCE
    assert b" 408 " not in answer
    assert answer.startswith(b"HTTP/1.1 ")


async def test_a_refused_body_cannot_hold_the_connection(port):
    start = b"POST /nothing HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n"
    answer, seconds = await exchange(port, start, *[b"x"] * 900, pause=0.02)
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.count(b"HTTP/1.1") == 1
    assert seconds < LATE


async def test_waiting_for_a_long_answer_is_not_slow(serve):
    runner = FakeRunner(step_seconds=0.05)
    async with (
        serve(runner, slow_client_seconds=0.2) as served,
        listening(served.app, head_seconds=0.2) as port,
    ):
        body = json.dumps(completion_body(None, "word " * 12, stream=True)).encode()
        head = HEAD.replace(b"/v1/chat", b"/v1/chat/completions")
        start = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        answer, seconds = await exchange(port, start + body)
    assert b"[DONE]" in answer
    assert seconds > 0.4


async def test_requests_in_a_row_and_pipelined_share_a_connection(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        writer.write(GET)
        assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(PATIENCE / 2)
    writer.write(GET * 3)
    for _ in range(3):
        assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_connection_too_many_is_told_so_and_a_closed_one_makes_room(serve):
    async with serve() as served, listening(served.app, max_connections=3, head_seconds=30) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        answer, _ = await exchange(port)
        assert refusal(answer) == (503, "too_many_connections")
        assert b"retry-after: 1" in answer.lower()
        held[0][1].write(GET)
        assert (await held[0][0].readline()).startswith(b"HTTP/1.1 200")
        held[1][1].close()
        await held[1][1].wait_closed()
        async with asyncio.timeout(LATE):
            while True:
                answer, _ = await exchange(port, GET[:-2] + b"Connection: close\r\n\r\n")
                if answer.startswith(b"HTTP/1.1 200"):
                    break
        for _, writer in held:
            writer.close()


async def test_slow_clients_hold_no_place_of_quick_ones(port):
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
    for _, writer in slow:
        writer.write(HEAD[:30])
    answer, seconds = await exchange(port, GET[:-2] + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert seconds < LATE / 2
    for reader, writer in slow:
        assert refusal(await until_closed(reader)) == (408, "request_timeout")
        writer.close()


@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not(reads):
    done = asyncio.Event()

    async def large_answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        done.set()

    num_bytes = 0
    async with listening(large_answer, stall_seconds=0.5) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET)
        async with asyncio.timeout(2 * LATE):
            while reads and not done.is_set():
                num_bytes += len(await reader.read(2**20))
            await done.wait()
        writer.close()
    assert (num_bytes > 50 * 2**20) == reads
