"""The API's description is committed; a difference is a decision.

Regenerate with UPDATE_GOLDENS=1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"


async def test_the_description_is_the_committed_one(serve):
    async with serve() as served:
        described = (await served.client.get("/openapi.json")).json()
    described["info"]["version"] = "any"
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    assert described == json.loads(GOLDEN.read_text())


async def test_every_operation_has_an_id_of_its_own(serve):
    async with serve() as served:
        described = (await served.client.get("/openapi.json")).json()
    operations = [each for item in described["paths"].values() for each in item.items()]
    ids = [operation["operationId"] for _, operation in operations]
    assert len(set(ids)) == len(ids)
    assert "head" not in {verb for verb, _ in operations}


async def test_every_reference_in_the_description_leads_somewhere(serve):
    async with serve() as served:
        described = (await served.client.get("/openapi.json")).json()
    text = json.dumps(described)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(described["components"]["schemas"])
    assert "#/$defs" not in text
