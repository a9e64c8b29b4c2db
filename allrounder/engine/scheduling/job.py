"""What the engine keeps of an admitted request between its caller and the device."""

from __future__ import annotations

from dataclasses import dataclass

from allrounder.core import ChatRequest, Timing
from allrounder.engine.protocols import Prepared, Running
from allrounder.engine.scheduling.stream import QueuedStream


@dataclass(kw_only=True)
class Job:
    """An admitted request between its caller's stream and its place on the device."""

    prepared: Prepared
    stream: QueuedStream
    running: Running | None = None
    admitted_at: float = 0.0
    last_token_at: float | None = None

    @property
    def request(self) -> ChatRequest:
        return self.prepared.request

    @property
    def is_on_device(self) -> bool:
        return self.running is not None or bool(self.admitted_at)

    def timing(self, now: float) -> Timing:
        """Of the stages so far; `now` in monotonic seconds."""
        if self.running is not None:
            return self.running.clock.timing(now)
        arrival = self.request.arrival
        return Timing(queue=(self.admitted_at or now) - arrival, total=now - arrival)
