"""The two APIs under load, our own and any that speaks OpenAI's: bodies and stream events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from allrounder.bench.noise_images import jpeg_url

_image = lru_cache(maxsize=256)(jpeg_url)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadRequest:
    """One request: which image, which question, at which budget."""

    image: int
    question: str
    budget: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What a timed stream needs of one server-sent event.

    Attributes:
        text: part of the answer.
        num_tokens: generated tokens of the whole answer.
        server_seconds: from arrival to end, by the server's own clock.
        error: code of an error after the stream had begun.
    """

    text: str = ""
    num_tokens: int | None = None
    server_seconds: float | None = None
    error: str | None = None


class Target(Protocol):
    """A server under load."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...

    def body(self, request: LoadRequest, *, max_tokens: int) -> bytes: ...

    def read(self, event: Mapping[str, Any]) -> Event: ...


@dataclass(frozen=True, kw_only=True)
class OwnApi:
    """`POST /v1/chat` as a stream."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "allrounder"
    path: str = "/v1/chat"

    def body(self, request: LoadRequest, *, max_tokens: int) -> bytes:
        fields = {
            "image": _image(request.image),
            "question": request.question,
            "budget": request.budget,
            "max_tokens": max_tokens,
            "stream": True,
        }
        return json.dumps(fields).encode()

    def read(self, event: Mapping[str, Any]) -> Event:
        if "error" in event:
            return Event(error=str(event["error"].get("code")))
        if "delta" in event:
            return Event(text=event["delta"])
        return Event(
            num_tokens=event["usage"]["completion_tokens"],
            server_seconds=event["timing"]["total_ms"] / 1000,
        )


@dataclass(frozen=True, kw_only=True)
class OpenAiApi:
    """`POST /v1/chat/completions` as a stream; knows no budget."""

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "peer"
    path: str = "/v1/chat/completions"

    def body(self, request: LoadRequest, *, max_tokens: int) -> bytes:
        content = [
            {"type": "image_url", "image_url": {"url": _image(request.image)}},
            {"type": "text", "text": request.question},
        ]
        fields = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(fields).encode()

    def read(self, event: Mapping[str, Any]) -> Event:
        if event.get("error"):
            error = event["error"]
            return Event(error=str(error.get("code") if isinstance(error, dict) else error))
        choices, usage = event.get("choices") or [], event.get("usage")
        text = choices[0].get("delta", {}).get("content") if choices else None
        return Event(text=text or "", num_tokens=usage["completion_tokens"] if usage else None)
