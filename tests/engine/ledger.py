"""An observer that keeps account of every event."""

from __future__ import annotations

from allrounder.core import ChatRequest, ChatResult, Timing
from allrounder.errors import AllrounderError


class Ledger:
    """Satisfies `allrounder.engine.protocols.Observer`."""

    def __init__(self) -> None:
        self.ends: dict[str, list[ChatResult | AllrounderError]] = {}
        self.rejections: list[AllrounderError] = []
        self.admissions: list[str] = []
        self.preemptions: list[str] = []

    def rejected(self, error: AllrounderError) -> None:
        self.rejections.append(error)

    def admitted(self, request: ChatRequest, *, queue_seconds: float) -> None:
        self.admissions.append(request.id)

    def preempted(self, request: ChatRequest) -> None:
        self.preemptions.append(request.id)

    def first_token(self, request: ChatRequest, *, seconds: float) -> None: ...

    def next_token(self, request: ChatRequest, *, seconds: float) -> None: ...

    def finished(self, request: ChatRequest, result: ChatResult) -> None:
        self.ends.setdefault(request.id, []).append(result)

    def failed(self, request: ChatRequest, error: AllrounderError, *, timing: Timing) -> None:
        self.ends.setdefault(request.id, []).append(error)
