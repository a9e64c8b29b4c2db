"""Requests as tests write them, and a bare ASGI caller that can hang up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.intake.pictures import data_url, red

URL = data_url(red())
QUESTION = "what colour is the big square over there"


def chat_body(**fields):
    return {"image": URL, "question": QUESTION, **fields}


def problem(response, status, code, param=None):
    """Asserts the envelope and its exact status, code and param."""
    assert response.headers["content-type"] == "application/json", response.text
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert all(isinstance(error[key], str) and error[key] for key in ("message", "type"))
    return error


def events(text):
    """The data of each server-sent event."""
    assert text.endswith("\n\n")
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


class BareCall:
    """One HTTP exchange by hand: what the app sends is kept, and the client can hang up."""

    def __init__(self, app, path, fields):
        self.messages = []
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        body = json.dumps(fields).encode()
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": ("192.0.2.1", 1),
            "server": ("test", 80),
        }
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._send))

    async def _send(self, message):
        self.messages.append(message)

    def hang_up(self):
        self._incoming.put_nowait({"type": "http.disconnect"})

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)


def completion_body(*parts, **fields):
    """One user message; a text is itself, None is the red image."""
    content = [
        {"type": "image_url", "image_url": {"url": URL}}
        if part is None
        else {"type": "text", "text": part}
        for part in parts or (None, QUESTION)
    ]
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **fields}
