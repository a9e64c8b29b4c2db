"""Whatever comes in, the answer is the envelope with its status, and nothing of ours leaks."""

from __future__ import annotations

import json
import re

import pytest

from tests.api.calls import URL, chat_body, problem
from tests.intake import pictures

JSON = {"content-type": "application/json"}
LEAK = re.compile(r"0x[0-9a-f]{4,}|Traceback|site-packages|/usr/|/etc/|\.py\b|BytesIO")


def image(content):
    return json.dumps(chat_body(image=pictures.data_url(content))).encode()


def with_field(text):
    """A JSON body with raw text in it, for what `json.dumps` would not write."""
    return f'{{"question": "x", "image": "{URL}", {text}}}'.encode()


BAD_BODIES = [
    ("nothing", b"", 400, "malformed_body", None),
    ("no json", b"hello", 400, "malformed_body", None),
    ("cut off", b'{"question": "x', 400, "malformed_body", None),
    ("a list", b"[]", 400, "malformed_body", None),
    ("a number", b"1", 400, "malformed_body", None),
    ("deep", b"[" * 100_000, 400, "malformed_body", None),
    ("deep but allowed in number", b'{"a":' * 5_000, 400, "malformed_body", None),
    ("many values", b"[" + b"0," * 100_000 + b"0]", 400, "malformed_body", None),
    ("long integer", with_field('"seed": ' + "1" * 5000), 400, "malformed_body", None),
    ("no utf-8", b'{"question": "\xff\xfe"}', 400, "malformed_body", None),
    ("utf-16", '{"question": "x"}'.encode("utf-16"), 400, "malformed_body", None),
    ("a key twice", with_field('"seed": 1, "seed": 2'), 400, "malformed_body", None),
    ("empty object", b"{}", 422, "invalid_field", "question"),
    ("nan", with_field('"temperature": NaN'), 422, "invalid_field", "temperature"),
    ("infinity", with_field('"top_p": Infinity'), 422, "invalid_field", "top_p"),
    ("overflow", with_field('"temperature": 1e999'), 422, "invalid_field", "temperature"),
    ("nan budget", with_field('"budget": NaN'), 422, "invalid_field", "budget"),
    ("minus zero", with_field('"budget": -0.0'), 422, "invalid_field", "budget"),
    ("surrogate", b'{"question": "\\ud800"}', 422, "invalid_field", "question"),
    ("surrogate key", with_field('"\\ud800": 1'), 422, "invalid_field", "body"),
    ("nul", b'{"question": "a\\u0000"}', 422, "invalid_field", "question"),
    ("long key", with_field(f'"{"k" * 9000}": 1'), 422, "invalid_field", "k" * 128),
    ("no image", b'{"question": "x"}', 422, "invalid_field", "image"),
    (
        "bad base64",
        json.dumps(chat_body(image="data:image/png;base64,?")).encode(),
        400,
        "invalid_base64",
        "image",
    ),
    (
        "remote",
        json.dumps(chat_body(image="https://example.com/a.png")).encode(),
        400,
        "remote_images_disabled",
        "image",
    ),
    (
        "a path",
        json.dumps(chat_body(image="file:///etc/passwd")).encode(),
        400,
        "image_url_not_allowed",
        "image",
    ),
    ("svg", image(b"<svg/>"), 400, "unsupported_image_format", "image"),
    ("bomb", image(pictures.png(60_000, 60_000)), 400, "image_too_large", "image"),
    ("damaged", image(pictures.red()[:40]), 400, "invalid_image", "image"),
    ("empty image", image(b""), 400, "invalid_image", "image"),
]


@pytest.fixture
async def client(serve):
    async with serve() as served:
        yield served.client


@pytest.mark.parametrize("row", BAD_BODIES, ids=[row[0] for row in BAD_BODIES])
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/plan"])
async def test_bad_bodies_get_their_status_code_and_param(client, row, path):
    _, body, status, code, param = row
    response = await client.post(path, content=body, headers=JSON)
    error = problem(response, status, code, param)
    assert not LEAK.search(error["message"].replace("/jpeg", ""))


async def test_a_key_given_twice_is_named_as_the_fault(client):
    body = with_field('"seed": 1, "seed": 2')
    response = await client.post("/v1/chat", content=body, headers=JSON)
    assert "given twice" in problem(response, 400, "malformed_body")["message"]


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "image/png"],
)
async def test_other_content_types_are_a_415(client, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    response = await client.post("/v1/chat", content=b"{}", headers=headers)
    problem(response, 415, "unsupported_content_type")


async def test_compressed_bodies_are_a_415(client):
    headers = JSON | {"content-encoding": "gzip"}
    response = await client.post("/v1/chat", content=b"\x1f\x8b", headers=headers)
    problem(response, 415, "unsupported_content_type")


async def test_a_charset_beside_the_content_type_is_fine(client):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    body = json.dumps(chat_body()).encode()
    assert (await client.post("/v1/chat", content=body, headers=headers)).status_code == 200


FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        (FORM, b"no form at all"),
        (FORM, b"--b\r\n\r\nx\r\n--b--"),
        (FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        (FORM, b"--b\r\nContent-Disposition\r\n\r\nx\r\n--b--\r\n"),
        (FORM, b"--b\r\n" * 50),
        (
            FORM,
            b"".join(
                b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % idx
                for idx in range(40)
            )
            + b"--b--\r\n",
        ),
        (
            FORM + "; charset=punycode",
            b'--b\r\nContent-Disposition: form-data; name="\xff\xff"\r\n\r\n\xff\r\n--b--\r\n',
        ),
        (
            FORM + "; charset=hex",
            b'--b\r\nContent-Disposition: form-data; name="zz"\r\n\r\nzz\r\n--b--\r\n',
        ),
    ],
)
async def test_broken_forms_are_a_clean_4xx(client, content_type, body):
    response = await client.post("/v1/chat", content=body, headers={"content-type": content_type})
    assert response.status_code in (400, 422)
    assert not LEAK.search(response.text)


async def test_a_body_that_declares_too_much_is_refused_unread(serve):
    async def endless():
        raise AssertionError("the body was read")
        yield b""

    async with serve(max_body_bytes=1024) as served:
        headers = JSON | {"content-length": "999999999999999999999"}
        response = await served.client.post("/v1/chat", content=endless(), headers=headers)
    problem(response, 413, "body_too_large")


@pytest.mark.parametrize("content_type", ["application/json", FORM])
async def test_a_body_that_grows_too_much_is_cut_off(serve, content_type):
    sent = 0

    async def growing():
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(1000):
            sent += 1024
            yield bytes(1024)

    async with serve(max_body_bytes=8192) as served:
        headers = {"content-type": content_type}
        response = await served.client.post("/v1/chat", content=growing(), headers=headers)
    problem(response, 413, "body_too_large")
    assert sent <= 10_240


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/files/../../etc/passwd", 404, "not_found"),
        ("GET", "/%2e%2e%2f%00", 404, "not_found"),
        ("POST", "/v1/chat/", 404, "not_found"),
        ("GET", "/v1/chat", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/", 405, "method_not_allowed"),
    ],
)
async def test_wrong_addresses_and_methods_get_the_envelope_too(client, method, path, status, code):
    response = await client.request(method, path)
    problem(response, status, code)
    assert ("allow" in response.headers) == (status == 405)


async def test_an_unexpected_error_is_a_500_with_a_fixed_text(serve, monkeypatch, caplog):
    def fail(*_args, **_kwargs):
        raise KeyError("/srv/secret at 0x7f0012345678")

    monkeypatch.setattr("allrounder_service.api.serving.parse_chat", fail)
    async with serve() as served:
        headers = {"X-Request-Id": "find-me"}
        response = await served.client.post("/v1/chat", json=chat_body(), headers=headers)
    problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "find-me"
    assert "secret" in caplog.text


async def test_a_good_request_beside_bad_ones_is_not_disturbed(client):
    alone = (await client.post("/v1/chat", json=chat_body())).json()
    for _, body, *_ in BAD_BODIES:
        await client.post("/v1/chat", content=body, headers=JSON)
    after = (await client.post("/v1/chat", json=chat_body())).json()
    assert (after["answer"], after["pruning"]) == (alone["answer"], alone["pruning"])
