"""When the stages of one request began, and how long they took."""

from __future__ import annotations

from dataclasses import dataclass, field

from allrounder.core import Stage, Timing


@dataclass(kw_only=True, slots=True)
class StageClock:
    """Seconds of a request's stages; a shared batch counts in full for each of its requests.

    Attributes:
        arrival: of the request, in monotonic seconds, as all times that are handed in.
        began: seconds after arrival at which each stage began.
    """

    arrival: float
    encode: float = 0.0
    plan: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    began: dict[Stage, float] = field(default_factory=dict)

    def enters(self, stage: Stage, now: float) -> None:
        """A stage begins, unless it has begun before. The queue ends where encoding begins."""
        self.began.setdefault(stage, max(now - self.arrival, 0.0))

    def timing(self, now: float) -> Timing:
        total = now - self.arrival
        return Timing(
            queue=self.began.get(Stage.ENCODE, total),
            encode=self.encode,
            plan=self.plan,
            prefill=self.prefill,
            decode=self.decode,
            total=total,
            began=dict(self.began),
        )
