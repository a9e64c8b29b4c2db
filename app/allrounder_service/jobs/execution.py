"""The execution of one line: read it, have it answered, return the outcome. Knows no queue."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from allrounder_service.jobs.queue import Claim
from allrounder_service.jobs.records import JobState, LineRef, LineResult, derived_line_id

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
# Claims of a line after which its unreadable bytes are treated as lost.
MAX_READS = 5
RETRY_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 8.0
# The engine is shutting down or not ready: another worker executes the line, or this one later.
RELEASE_CODES = frozenset({"draining", "engine_dead", "loading"})
# Other lines shared the step; which of them caused the failure shows when each runs alone.
STEP_FAILED = "step_failed"
OUT_OF_MEMORY = "engine_oom"
# Backpressure of the engine: the line is submitted again.
QUEUE_FULL = "queue_full"


@dataclass(frozen=True, kw_only=True, slots=True)
class LineResponse:
    """An HTTP status and body, as the line's url would have answered."""

    status: int
    body: Mapping[str, Any]

    @property
    def code(self) -> str:
        error = self.body.get("error")
        return str(error.get("code", "")) if isinstance(error, Mapping) else ""


class LineHandler(Protocol):
    """Answers the line `job`. Cancelling the call cancels the request."""

    async def __call__(
        self, url: str, body: Mapping[str, Any], *, tenant: str, id: str, job: str
    ) -> LineResponse: ...


class Volume(Protocol):
    """Where inputs and results are stored. Its methods block, so they are called in threads."""

    def read(self, sha256: str, offset: int, length: int) -> bytes: ...

    def put_result(self, batch: str, data: bytes) -> str:
        """Durable when it returns -> SHA-256."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LineOutcome:
    """How an execution ended: with a result to publish, or with a release for a retry.

    Attributes:
        release: the line is to be executed again, by any worker.
        failed: released because its step failed beside other lines.
        unreadable: released because the volume could not be read.
    """

    state: JobState = JobState.FAILED
    content: bytes = b""
    result: LineResult = field(default_factory=lambda: LineResult(code="internal_error"))
    release: bool = False
    failed: bool = False
    unreadable: bool = False


async def execute(claim: Claim, volume: Volume, answer: LineHandler) -> LineOutcome:
    """Cancelling the call cancels the request."""
    try:
        line = await asyncio.to_thread(_read_line, volume, claim.ref)
    except OSError as err:
        return _unread(claim, err)
    batch, _, idx = claim.job.partition("/")
    id = derived_line_id(batch, int(idx))
    answered = await _answer_with_retries(answer, claim, line, id)
    if answered.code in RELEASE_CODES:
        return LineOutcome(release=True)
    if answered.code == STEP_FAILED and not claim.is_alone:
        return LineOutcome(release=True, failed=True)
    body = dict(answered.body)
    usage = body.get("usage") or {}
    content = json.dumps({"status_code": answered.status, "request_id": id, "body": body}).encode()
    result = LineResult(
        status=answered.status,
        code=answered.code or None,
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
    )
    state = JobState.DONE if answered.status == 200 else JobState.FAILED
    return LineOutcome(state=state, content=content, result=result)


def outcome_of(task: asyncio.Task[LineOutcome]) -> LineOutcome:
    if task.cancelled():
        return LineOutcome(release=True)
    if (err := task.exception()) is not None:
        logger.error("a line could not be executed", exc_info=err, extra={"job": task.get_name()})
        return LineOutcome()
    return task.result()


def _unread(claim: Claim, err: OSError) -> LineOutcome:
    """Release, since the volume may be mounted late or not here; after MAX_READS the line fails."""
    logger.error("a line could not be read: %s", type(err).__name__, extra={"job": claim.job})
    if claim.attempts >= MAX_READS:
        return LineOutcome(result=LineResult(code="input_unavailable"))
    return LineOutcome(release=True, unreadable=True)


def _read_line(volume: Volume, ref: LineRef) -> Mapping[str, Any]:
    line: Mapping[str, Any] = json.loads(volume.read(ref.sha256, ref.offset, ref.length))
    return line


async def _answer_with_retries(
    answer: LineHandler, claim: Claim, line: Mapping[str, Any], id: str
) -> LineResponse:
    attempt, pause, url, body = 1, RETRY_SECONDS, line["url"], line["body"]
    while True:
        answered = await answer(url, body, tenant=claim.tenant, id=id, job=claim.job)
        if answered.code == OUT_OF_MEMORY and attempt < MAX_ATTEMPTS:
            attempt += 1
        elif answered.code != QUEUE_FULL:
            return answered
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(random.uniform(0, pause))
