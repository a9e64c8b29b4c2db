"""The execution of one line: read it, have it answered, say how it ended. Knows no queue."""

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
# How often a line is read before its bytes are taken for lost.
MAX_READS = 5
RETRY_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 8.0
# The engine is going away: the line is another worker's, or this one's after a restart.
GIVE_BACK = frozenset({"draining", "engine_dead", "loading"})
# Others shared it; whose fault it was shows when the line runs alone.
FAULT = "step_failed"
NO_MEMORY = "engine_oom"
# Not the line's end: its turn has not come.
NO_ROOM = "queue_full"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """An HTTP status and body, as the line's url would have answered."""

    status: int
    body: Mapping[str, Any]

    @property
    def code(self) -> str:
        error = self.body.get("error")
        return str(error.get("code", "")) if isinstance(error, Mapping) else ""


class Answer(Protocol):
    """Answers one line, `job` of its batch. Cancelling the call cancels the request."""

    async def __call__(
        self, url: str, body: Mapping[str, Any], *, tenant: str, id: str, job: str
    ) -> Answered: ...


class Volume(Protocol):
    """Where inputs and results lie. Its methods block, so they are called in threads."""

    def read(self, sha256: str, offset: int, length: int) -> bytes: ...

    def put_result(self, batch: str, data: bytes) -> str:
        """Durable when it returns -> SHA-256."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an execution ended: with something to publish, or not by itself.

    Attributes:
        give_back: to be executed again, by whomever.
        failed: it is given back because something went wrong beside others.
        unreadable: it is given back because the volume could not be read.
    """

    state: JobState = JobState.FAILED
    content: bytes = b""
    result: LineResult = field(default_factory=lambda: LineResult(code="internal_error"))
    give_back: bool = False
    failed: bool = False
    unreadable: bool = False


async def execute(claim: Claim, volume: Volume, answer: Answer) -> Outcome:
    """Cancelling the call gives up the request."""
    try:
        line = await asyncio.to_thread(_read_line, volume, claim.ref)
    except OSError as err:
        return _unread(claim, err)
    batch, _, idx = claim.job.partition("/")
    id = derived_line_id(batch, int(idx))
    answered = await _answer_patiently(answer, claim, line, id)
    if answered.code in GIVE_BACK:
        return Outcome(give_back=True)
    if answered.code == FAULT and not claim.is_alone:
        return Outcome(give_back=True, failed=True)
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
    return Outcome(state=state, content=content, result=result)


def outcome_of(task: asyncio.Task[Outcome]) -> Outcome:
    if task.cancelled():
        return Outcome(give_back=True)
    if (err := task.exception()) is not None:
        logger.error("a line could not be executed", exc_info=err, extra={"job": task.get_name()})
        return Outcome()
    return task.result()


def _unread(claim: Claim, err: OSError) -> Outcome:
    """A volume may come late, or be another worker's only; what is gone is gone for all."""
    logger.error("a line could not be read: %s", type(err).__name__, extra={"job": claim.job})
    if claim.attempts >= MAX_READS:
        return Outcome(result=LineResult(code="input_unavailable"))
    return Outcome(give_back=True, unreadable=True)


def _read_line(volume: Volume, ref: LineRef) -> Mapping[str, Any]:
    line: Mapping[str, Any] = json.loads(volume.read(ref.sha256, ref.offset, ref.length))
    return line


async def _answer_patiently(
    answer: Answer, claim: Claim, line: Mapping[str, Any], id: str
) -> Answered:
    attempt, pause, url, body = 1, RETRY_SECONDS, line["url"], line["body"]
    while True:
        answered = await answer(url, body, tenant=claim.tenant, id=id, job=claim.job)
        if answered.code == NO_MEMORY and attempt < MAX_ATTEMPTS:
            attempt += 1
        elif answered.code != NO_ROOM:
            return answered
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(random.uniform(0, pause))
