"""A real server process over the fake engine: `python -m tests.api.fake_server`."""

from __future__ import annotations

import sys

from app.engine.fake import FakeRunner
from app.main import serve
from app.settings import Settings
from tests.api.fake_engine import FakeEngine


def make_engine(settings, observer):
    runner = FakeRunner(step_seconds=0.05, faults={"boom": RuntimeError("device lost")})
    return FakeEngine(
        lambda: runner,
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        observer=observer,
    )


if __name__ == "__main__":
    sys.exit(serve(Settings(drain_seconds=5), make_engine))
