"""The files of the pages: how they are served, how large they are, what made them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from allrounder_service.api.endpoints.pages import MEDIA_TYPES, WEB
from allrounder_service.main import create_app
from allrounder_service.settings import Settings
from research.demo_model.showcase import INDEX, draw_showcase, index_of
from tests.web.asking import EXAMPLES

MAX_FILE_LINES = 300
FILES = sorted(path for path in WEB.rglob("*") if path.is_file())
TEXTS = [path for path in FILES if path.suffix in (".html", ".css", ".js")]
SECRETS = (
    "../settings.py",
    "..%2fsettings.py",
    "%2e%2e/settings.py",
    "js/../../settings.py",
    "js/..%5c..%5csettings.py",
    "/etc/passwd",
    "//etc/passwd",
    "js",
    "js/",
    "",
    "index.html%00.js",
)


@pytest.fixture
async def client():
    app = create_app(Settings())
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


@pytest.mark.parametrize("path", ["/", "/docs", "/web/js/main.js", "/web/examples/scene-3.webp"])
async def test_a_file_comes_once_and_is_then_known(client, path):
    first = await client.get(path)
    etag = first.headers["etag"]
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    for known in (etag, f'"other", W/{etag}'):
        again = await client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    other = await client.get(path, headers={"If-None-Match": '"other"'})
    assert other.content == first.content
    assert (await client.head(path)).headers["content-length"] == str(len(first.content))


async def test_the_policy_lets_nothing_in_from_outside_and_no_inline_code(client):
    for path in ("/", "/docs"):
        policy = (await client.get(path)).headers["content-security-policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert rules["img-src"] == "'self' data: blob:"
        assert rules["frame-ancestors"] == rules["form-action"] == rules["base-uri"] == "'none'"
        assert "unsafe" not in policy


@pytest.mark.parametrize("name", SECRETS)
async def test_no_other_file_is_reached(client, name):
    response = await client.get(f"/web/{name}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_every_file_has_its_type(client):
    for path in FILES:
        response = await client.get(f"/web/{path.relative_to(WEB).as_posix()}")
        assert response.headers["content-type"] == MEDIA_TYPES[path.suffix]
        assert response.content == path.read_bytes()


def test_no_file_of_the_pages_is_longer_than_the_cap() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in TEXTS}
    assert {name: count for name, count in lengths.items() if count > MAX_FILE_LINES} == {}


def test_the_pages_name_no_other_host_and_hold_no_inline_code() -> None:
    found = [
        (path.name, match)
        for path in TEXTS
        for match in re.findall(r"https?://[^\s\"'`)]+", path.read_text())
        if match != "http://www.w3.org/2000/svg"
    ]
    assert found == []
    for page in WEB.glob("*.html"):
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page.read_text())


def test_every_module_imports_what_there_is() -> None:
    assert list(_missing(WEB / "js")) == []


def _missing(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.js"):
        for names, module in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', path.read_text()):
            text = (folder / module).read_text()
            for name in (each.strip() for each in names.split(",")):
                if not re.search(rf"export (async )?(const|function|class) {name}\b", text):
                    yield f"{path.name}: {name} of {module}"


@pytest.mark.timeout(60)
def test_the_examples_are_what_the_generator_makes() -> None:
    exams = draw_showcase()
    index = json.loads((EXAMPLES / INDEX).read_text())
    assert index == index_of(exams)
    files = {path.name: path.stat().st_size for path in EXAMPLES.iterdir()}
    assert set(files) == {INDEX, *(entry["file"] for entry in index)}
    assert sum(files.values()) < 400_000
    for entry, exam in zip(index, exams, strict=True):
        with Image.open(EXAMPLES / entry["file"]) as picture:
            assert np.array_equal(np.asarray(picture.convert("RGB")), exam.image)
        assert len(exam.questions) == 1
