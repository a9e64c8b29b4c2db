"""Which files, functions and classes one request passes: `python -m tools.trace_request`.

A real engine with the embedded model answers `POST /v1/chat` in this process; every call in our own
packages is counted, on all threads.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2

from allrounder_service.main import create_app
from allrounder_service.settings import Settings

ROOT = Path(__file__).parents[1]
HOUSES = (str(ROOT / "allrounder"), str(ROOT / "app" / "allrounder_service"))
EXAMPLE = ROOT / "allrounder" / "demo" / "example.png"
QUESTION = "Describe the largest shape."


class Trace:
    """Counts calls of our own functions; `profile` is a profile function for every thread."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HOUSES) and code.co_name != "<module>":
            self.calls[(code.co_filename, code.co_qualname)] += 1

    @property
    def files(self) -> list[str]:
        return sorted({str(Path(name).relative_to(ROOT)) for name, _ in self.calls})


async def ask(client: httpx2.AsyncClient, budget: float) -> None:
    response = await client.post(
        "/v1/chat",
        files={"image": EXAMPLE.read_bytes()},
        data={"question": QUESTION, "budget": str(budget)},
    )
    response.raise_for_status()


async def traced(budget: float) -> Trace:
    trace = Trace()
    threading.setprofile(trace.profile)
    app = create_app(Settings(embedded_redis=False, log_level="error", model="demo"))
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            while (await client.get("/readyz")).status_code != httpx2.codes.OK:
                await asyncio.sleep(0.1)
            # Lazy imports and caches are not the request's own.
            await ask(client, 0.5)
            trace.calls.clear()
            sys.setprofile(trace.profile)
            await ask(client, budget)
            sys.setprofile(None)
    threading.setprofile(None)
    return trace


def main() -> None:
    trace = asyncio.run(traced(budget=0.25))
    print("\n".join(trace.files))
    functions, calls = len(trace.calls), sum(trace.calls.values())
    print(f"{len(trace.files)} files, {functions} functions, {calls} calls")


if __name__ == "__main__":
    main()
