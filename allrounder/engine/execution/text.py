"""Generated ids to text that is final: whole characters, and never part of a stop string."""

from __future__ import annotations

from allrounder.models.adapter import TextStream


class AnswerText:
    """Collects one answer; text that may still turn into a stop string is held back."""

    def __init__(self, stream: TextStream, stop: tuple[str, ...]) -> None:
        self._stream = stream
        self._stop = stop
        self._text = ""
        self._num_sent = 0
        self.stopped = False

    @property
    def text(self) -> str:
        return self._text

    @property
    def num_final(self) -> int:
        """Characters that were handed out."""
        return self._num_sent

    def push(self, token_id: int) -> str:
        """Add one id; returns the text that became final."""
        added = self._stream.push(token_id)
        self._text += added if self._text else added.lstrip()
        cut = self._first_stop()
        if cut is not None:
            self._text = self._text[:cut]
            self.stopped = True
        return self._release(0 if self.stopped else self._num_pending())

    def flush(self) -> str:
        """The request ends: everything held back is final now."""
        return self._release(0)

    def _release(self, num_held: int) -> str:
        end = len(self._text) - num_held
        ready = self._text[self._num_sent : end]
        self._num_sent = max(self._num_sent, end)
        return ready

    def _first_stop(self) -> int | None:
        found = [at for at in (self._text.find(stop) for stop in self._stop) if at >= 0]
        return min(found, default=None)

    def _num_pending(self) -> int:
        """Length of the longest tail that begins some stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stop):
                return length
        return 0
