"""The embedded model itself: its stages take the time that its answer tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.tracing.test_requests import ROUNDING, STAGES, assert_stages_lie_within

EXAMPLE = Path(__file__).parents[2] / "allrounder" / "demo" / "example.png"


@pytest.mark.timeout(180)
async def test_the_stages_of_the_embedded_model_take_the_time_that_it_tells(serve, receiver):
    async with serve(demo=True, otlp_endpoint=receiver.url) as client:
        call = {
            "files": {"image": EXAMPLE.read_bytes()},
            "data": {"question": "Describe the largest shape.", "budget": "0.5"},
        }
        answers = await asyncio.gather(*(client.post("/v1/chat", **call) for _ in range(2)))
    told = {answer.json()["id"]: answer.json() for answer in answers}
    assert len(receiver.roots) == len(told) == 2
    for root in receiver.roots:
        answer = told[root.attributes["gen_ai.response.id"]]
        assert root.name == "chat demo"
        assert root.attributes["allrounder.strategy"] == "par"
        flops = answer["pruning"]["flops"]
        assert root.attributes["allrounder.flops.saved"] == flops["saved"] > 0
        stages = receiver.below(root)
        assert [stage.name for stage in stages] == STAGES
        assert_stages_lie_within(root, stages)
        seconds = {name: answer["timing"][f"{name}_ms"] / 1000 for name in (*STAGES, "total")}
        assert min(seconds.values()) >= 0
        for stage in stages[:3]:
            assert stage.seconds == pytest.approx(seconds[stage.name], abs=ROUNDING)
        for stage in stages[3:]:
            computed = stage.attributes["allrounder.stage.computed_seconds"]
            assert computed == pytest.approx(seconds[stage.name], abs=ROUNDING)
            assert 0 < computed <= stage.seconds + ROUNDING
        assert root.seconds >= seconds["total"] - ROUNDING
