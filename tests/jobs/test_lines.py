"""Input files: where their lines lie, and which faults fail a batch."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder_service.jobs import batch_files as lines
from allrounder_service.jobs.batch_files import LineCounter, find_faults, read_lines, take
from tests.jobs.serving import ENDPOINT, request_line

pieces = st.lists(st.sampled_from([b"\n", b"\r\n", b" ", b"{}", b"ab\ncd", b"", b"\n\n"]))


@given(pieces)
def test_what_the_counter_counts_is_what_the_reader_finds(parts):
    counter = LineCounter()
    for part in parts:
        counter.feed(part)
    counter.close()
    data = b"".join(parts)
    found = list(read_lines(io.BytesIO(data)))
    assert counter.num_lines == len(found)
    assert counter.longest == max((len(line) for line in data.split(b"\n")), default=0)
    assert all(data[line.offset : line.offset + line.length] == line.text for line in found)
    assert [line.number for line in found] == [
        number for number, line in enumerate(data.split(b"\n"), 1) if line.strip()
    ]


def line(**changes):
    whole = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": {}}
    return json.dumps({**whole, **changes}).encode()


def fault_of(text):
    (fault,) = find_faults(read_lines(io.BytesIO(text)), ENDPOINT)
    return None if fault is None else (fault.code, fault.param, fault.line)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (line(), None),
        (line(body={"stream": False, "model": "x", "unknown": 1}), None),
        (line(custom_id="x" * 512), None),
        (b"{", ("invalid_json_line", None, 1)),
        (b"\xff", ("invalid_json_line", None, 1)),
        (b"[]", ("invalid_json_line", None, 1)),
        (b'"a"', ("invalid_json_line", None, 1)),
        (b"[" * 100_000, ("invalid_json_line", None, 1)),
        (line(body={"budget": float("nan")}), ("invalid_json_line", None, 1)),
        (line(body={"budget": float("-inf")}), ("invalid_json_line", None, 1)),
        (line(body={"n": [0] * 70_000}), ("invalid_json_line", None, 1)),
        (b'{"custom_id": 1, "custom_id": 1}', ("invalid_json_line", None, 1)),
        (b'{"a": 1' + b"0" * 5000 + b"}", ("invalid_json_line", None, 1)),
        (b"{}", ("missing_required_parameter", "body", 1)),
        (line(model="x"), ("unknown_parameter", None, 1)),
        (line(method="GET"), ("invalid_method", "method", 1)),
        (line(method=None), ("invalid_method", "method", 1)),
        (line(url="/v1/embeddings"), ("mismatched_url", "url", 1)),
        (line(url="/v1/chat"), ("mismatched_url", "url", 1)),
        (line(body=[]), ("invalid_body", "body", 1)),
        (line(body={"stream": True}), ("invalid_body", "body.stream", 1)),
        (line(custom_id=""), ("invalid_custom_id", "custom_id", 1)),
        (line(custom_id="x" * 513), ("invalid_custom_id", "custom_id", 1)),
        (line(custom_id=1), ("invalid_custom_id", "custom_id", 1)),
    ],
)
def test_a_fault_is_named_with_its_line_and_field(text, fault):
    assert fault_of(text) == fault


def test_a_repeated_custom_id_names_the_line_that_had_it_first():
    text = b"\n\n".join([line(), line(custom_id="b"), line()])
    *_, fault = find_faults(read_lines(io.BytesIO(text)), ENDPOINT)
    assert fault is not None
    assert fault.line == 5
    assert fault.code == "duplicate_custom_id"
    assert "line 1" in fault.message


def test_no_message_repeats_what_the_line_said():
    secret = "https://example.com/?key=hunter2"
    texts = [line(url=secret), line(method=secret), line(**{secret: 1}), secret.encode()]
    for text in texts:
        (fault,) = find_faults(read_lines(io.BytesIO(text)), ENDPOINT)
        assert fault is not None
        assert "hunter2" not in fault.message


def test_chunks_end_early_when_lines_take_long():
    items = iter(range(5))
    assert take(items, 2) == [0, 1]
    assert take(items, 9, seconds=-1) == [2]
    assert take(items, 9) == [3, 4]
    assert take(items, 9) == []


def test_the_helper_of_these_tests_writes_lines_without_fault():
    assert fault_of(request_line("a", idx=1).encode()) is None
    assert lines.ENDPOINTS == ("/v1/chat", "/v1/chat/completions")
