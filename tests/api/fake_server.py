"""A real server process over the fake runner: `python -m tests.api.fake_server`."""

from __future__ import annotations

import sys

from allrounder.engine.engine import Engine
from allrounder.engine.fake import DeviceLost, FakeRunner
from allrounder_service.main import serve
from allrounder_service.settings import Settings


def make_engine(settings, observer):
    runner = FakeRunner(step_seconds=0.05, faults={"boom": DeviceLost()})
    return Engine(
        lambda: runner,
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        observer=observer,
    )


if __name__ == "__main__":
    sys.exit(serve(Settings(drain_seconds=5), make_engine))
