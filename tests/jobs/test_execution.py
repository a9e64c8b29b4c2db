"""One line: what ends it, what is tried again, and what goes back to the queue."""

from __future__ import annotations

import json

import pytest

from allrounder_service.jobs import execution
from allrounder_service.jobs.execution import MAX_ATTEMPTS, MAX_READS, LineResponse, execute
from allrounder_service.jobs.queue import Claim
from allrounder_service.jobs.records import JobState, LineRef

LINE = json.dumps({"url": "/v1/chat", "body": {"question": "?"}}).encode()


class Folder:
    """A volume of one line, or of none."""

    def __init__(self, line: bytes | None = LINE) -> None:
        self.line = line

    def read(self, sha256: str, offset: int, length: int) -> bytes:
        if self.line is None:
            raise FileNotFoundError(sha256)
        return self.line

    def put_result(self, batch: str, data: bytes) -> str:
        raise AssertionError("an execution publishes nothing itself")


class Answers:
    """Gives these answers in turn, the last one again and again."""

    def __init__(self, *answers: LineResponse) -> None:
        self.left, self.asked = list(answers), list[str]()

    async def __call__(self, url, body, *, tenant, id, job) -> LineResponse:
        self.asked.append(id)
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def claim(*, attempts: int = 1, is_alone: bool = False) -> Claim:
    ref = LineRef(sha256="a" * 64, offset=0, length=len(LINE))
    return Claim(
        job="batch_x/3", fence=1, tenant="t", ref=ref, attempts=attempts, is_alone=is_alone
    )


def error(status: int, code: str) -> LineResponse:
    return LineResponse(status=status, body={"error": {"code": code}})


GOOD = LineResponse(status=200, body={"answer": "yes"})


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "RETRY_SECONDS", 1e-3)
    monkeypatch.setattr(execution, "LONGEST_PAUSE_SECONDS", 1e-3)


@pytest.mark.parametrize("code", ["draining", "engine_dead", "loading"])
async def test_an_engine_that_goes_away_gives_the_line_back_without_blame(code):
    outcome = await execute(claim(), Folder(), Answers(error(503, code)))
    assert (outcome.release, outcome.failed, outcome.content) == (True, False, b"")


async def test_no_room_is_never_how_a_line_ends():
    # Hours of it: a pause that doubles each time would leave what a float can hold.
    answers = Answers(*[error(429, "queue_full")] * 1100, GOOD)
    outcome = await execute(claim(), Folder(), answers)
    assert outcome.state is JobState.DONE
    assert len(answers.asked) == 1101
    assert len(set(answers.asked)) == 1


async def test_a_line_that_does_not_fit_is_told_so_after_a_few_attempts():
    answers = Answers(error(503, "engine_oom"))
    outcome = await execute(claim(), Folder(), answers)
    assert (outcome.state, outcome.result.code) == (JobState.FAILED, "engine_oom")
    assert len(answers.asked) == MAX_ATTEMPTS


async def test_a_fault_beside_others_sends_the_line_back_and_alone_it_is_its_own():
    answers = Answers(error(500, "step_failed"))
    beside = await execute(claim(), Folder(), answers)
    assert (beside.release, beside.failed) == (True, True)
    alone = await execute(claim(is_alone=True), Folder(), answers)
    assert (alone.release, alone.state) == (False, JobState.FAILED)
    assert json.loads(alone.content)["status_code"] == 500


async def test_an_error_of_its_own_ends_a_line_at_once():
    outcome = await execute(claim(), Folder(), Answers(error(500, "internal_error")))
    assert (outcome.release, outcome.result.code) == (False, "internal_error")


async def test_what_cannot_be_read_is_left_to_others_and_at_last_taken_for_lost():
    for attempts in range(1, MAX_READS):
        outcome = await execute(claim(attempts=attempts), Folder(None), Answers(GOOD))
        assert (outcome.release, outcome.unreadable) == (True, True)
    outcome = await execute(claim(attempts=MAX_READS), Folder(None), Answers(GOOD))
    assert (outcome.release, outcome.state) == (False, JobState.FAILED)
    assert outcome.result.code == "input_unavailable"


async def test_half_a_character_is_published_as_it_came():
    refused = LineResponse(status=422, body={"error": {"code": "invalid_field", "param": "\ud800"}})
    outcome = await execute(claim(), Folder(), Answers(refused))
    assert outcome.result.status == 422
    assert json.loads(outcome.content)["body"] == refused.body
