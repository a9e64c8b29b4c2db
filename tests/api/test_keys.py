"""Keys of the file: who is let in where, and what becomes of a key that changes."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import random
import re
import resource
import string
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from starlette.datastructures import Headers

from allrounder.errors import AuthenticationFailed, KeyFileUnusable
from allrounder_service.api.auth import KeyRing, issue_key
from allrounder_service.api.key_file import KeyFile, Scope, WatchedKeys, edit_keys, read_keys
from allrounder_service.main import create_app
from allrounder_service.settings import Settings
from tests.api.calls import QUESTION, chat_body, problem
from tests.api.keys import add_key, bearer
from tests.api.test_metrics_endpoint import series
from tests.api.test_service import TenantRunner

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANY_KEY, NO_KEY = "any key", "no key"
OPENS = {
    "/v1/chat": Scope.CHAT,
    "/v1/chat/completions": Scope.CHAT,
    "/v1/plan": Scope.CHAT,
    "/v1/models": ANY_KEY,
    "/v1/files": Scope.BATCH,
    "/v1/files/{file_id}": Scope.BATCH,
    "/v1/files/{file_id}/content": Scope.BATCH,
    "/v1/batches": Scope.BATCH,
    "/v1/batches/{batch_id}": Scope.BATCH,
    "/v1/batches/{batch_id}/cancel": Scope.BATCH,
    "/metrics": Scope.METRICS,
    "/openapi.json": Scope.DOCS,
    "/livez": NO_KEY,
    "/health": NO_KEY,
    "/readyz": NO_KEY,
    "/": NO_KEY,
    "/docs": NO_KEY,
    "/web/{name:path}": NO_KEY,
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def routes(app):
    """Method and path of every route there is, however deep it was included."""
    found, left = set(), list(app.routes)
    while left:
        route = left.pop()
        left += getattr(getattr(route, "original_router", None), "routes", ())
        found |= {(method, route.path) for method in getattr(route, "methods", None) or ()}
    return sorted(found)


def refused(response, status, code, without_body=""):
    """What the answer says; to HEAD it says nothing."""
    if response.request.method == "HEAD":
        assert (response.status_code, response.content) == (status, b"")
        return without_body
    return problem(response, status, code)["message"]


async def test_every_route_asks_for_its_scope_and_for_nothing_else(serve, path):
    keys = {str(scope): add_key(path, scopes=[scope]) for scope in Scope}
    elsewhere = add_key(path.with_name("other.json"), scopes=list(Scope))
    known_id = read_keys(path).keys[0].id
    unknown = ["", elsewhere, f"ar-{known_id}-{'x' * 43}"]
    async with serve(api_keys_file=path, protect_metrics=True, protect_docs=True) as served:

        async def ask(method, template, key):
            address = re.sub(r"\{.*?\}", "file-x", template)
            headers = bearer(key) if key else {}
            return await served.client.request(method, address, headers=headers)

        listed = routes(served.app)
        assert {path for _, path in listed} == set(OPENS)
        for method, template in listed:
            wanted = OPENS[template]
            for key in unknown:
                response = await ask(method, template, key)
                if wanted is NO_KEY:
                    assert response.status_code not in (401, 403), template
                else:
                    refused(response, 401, "invalid_api_key")
                    assert response.headers["www-authenticate"] == "Bearer"
            for scope, key in keys.items():
                response = await ask(method, template, key)
                if wanted in (NO_KEY, ANY_KEY, scope):
                    assert response.status_code not in (401, 403), (template, scope)
                else:
                    assert wanted in refused(response, 403, "permission_denied", wanted)


async def test_pages_and_metrics_are_open_unless_the_operator_protects_them(serve, path):
    key = add_key(path)
    async with serve(api_keys_file=path) as served:
        for address in ("/metrics", "/openapi.json", "/docs", "/"):
            assert (await served.client.get(address)).status_code == 200
        assert (await served.client.get("/v1/models", headers=bearer(key))).status_code == 200


async def test_keys_of_one_tenant_are_one_tenant(serve, path):
    runner = TenantRunner()
    first, second = add_key(path, tenant="acme"), add_key(path, tenant="acme")
    other = add_key(path, tenant="globex")
    async with serve(runner, api_keys_file=path, api_keys="plain") as served:
        for key in (first, second, other, "plain"):
            response = await served.client.post("/v1/chat", json=chat_body(), headers=bearer(key))
            assert response.json()["answer"] == QUESTION
    assert runner.tenants[:3] == ["acme", "acme", "globex"]
    assert runner.tenants[3].startswith("key-")


def ring(path, *, clock=None, now=lambda: NOW):
    return KeyRing(watched=WatchedKeys(path, clock=clock or Clock()), now=now)


def is_let_in(keys, key):
    try:
        keys.caller_of(Headers(bearer(key)))
    except AuthenticationFailed:
        return False
    return True


def test_a_key_ends_when_it_expires(path):
    key = add_key(path, expires=NOW)
    assert is_let_in(ring(path, now=lambda: NOW - timedelta(seconds=1)), key)
    assert not is_let_in(ring(path, now=lambda: NOW), key)


def test_an_empty_file_lets_nobody_in(path):
    path.write_text('{"keys": []}')
    assert not is_let_in(ring(path), "anything")


def test_new_and_revoked_keys_count_without_a_restart(path):
    clock = Clock()
    old = add_key(path)
    keys = ring(path, clock=clock)
    new = add_key(path)
    with edit_keys(path) as records:
        records[old.split("-")[1]] = records[old.split("-")[1]].model_copy(
            update={"disabled": True}
        )
    assert (is_let_in(keys, old), is_let_in(keys, new)) == (True, False)
    clock.now += 1
    assert (is_let_in(keys, old), is_let_in(keys, new)) == (False, True)


@pytest.mark.parametrize("damage", ["{", '{"keys": [{"id": "x"}]}', None])
def test_a_damaged_file_leaves_the_keys_as_they_were_and_is_told_once(path, damage, caplog):
    clock = Clock()
    key = add_key(path)
    keys = ring(path, clock=clock)
    good = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    for _ in range(3):
        clock.now += 1
        assert is_let_in(keys, key)
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 1
    path.write_bytes(good)
    second = add_key(path)
    clock.now += 1
    assert is_let_in(keys, second)


@contextmanager
def no_free_descriptor():
    """Whatever is opened meanwhile fails with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_read_that_failed_is_tried_again_so_that_a_revoked_key_ends(path, caplog):
    clock = Clock()
    key = add_key(path)
    keys = ring(path, clock=clock)
    with edit_keys(path) as records:
        records.clear()
    for _ in range(2):
        clock.now += 1
        with no_free_descriptor():
            assert is_let_in(keys, key)
    clock.now += 1
    assert not is_let_in(keys, key)
    errors = [each.message for each in caplog.records if each.levelno >= logging.ERROR]
    assert [each.rpartition(": ")[2] for each in errors] == ["Too many open files"]


def test_each_reason_is_told_once_and_again_after_the_file_was_well(path, caplog):
    clock = Clock()
    add_key(path)
    keys = ring(path, clock=clock)
    away = path.with_name("away")

    def look():
        clock.now += 1
        is_let_in(keys, "anything")

    for _ in range(2):
        path.rename(away)
        look()
        path.write_text("{")
        look()
        look()
        path.unlink()
        look()
        away.rename(path)
        look()
    errors = [each.message for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 4
    assert len(set(errors)) == 2


def test_a_change_in_place_is_seen_though_size_and_time_of_writing_are_kept(path):
    clock = Clock()
    key = add_key(path)
    keys = ring(path, clock=clock)
    before = path.stat()
    digest = read_keys(path).keys[0].sha256
    # Filesystems keep times by the tick of the kernel, up to 10 ms.
    time.sleep(0.03)
    path.write_text(path.read_text().replace(digest, "0" * 64))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    clock.now += 1
    assert not is_let_in(keys, key)


RECORD = json.loads(issue_key(tenant="acme").record.model_dump_json(exclude_none=True))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "the file"),
        ("[]", "the file"),
        ({"keys": [RECORD, RECORD]}, "keys"),
        ({"keys": [RECORD | {"sha256": "secret-text"}]}, "keys.0.sha256"),
        ({"keys": [RECORD | {"key": "secret-text"}]}, "keys.0.key"),
        ({"keys": [RECORD | {"id": "no-dash"}]}, "keys.0.id"),
        ({"keys": [RECORD | {"tenant": "a:b"}]}, "keys.0.tenant"),
        ({"keys": [RECORD | {"scopes": ["all"]}]}, "keys.0.scopes.0"),
        ({"keys": [RECORD | {"requests_per_minute": -1}]}, "keys.0.requests_per_minute"),
        ({"keys": [RECORD | {"expires": "2026-01-01T00:00:00"}]}, "keys.0.expires"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_without_its_content(path, content, place):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(KeyFileUnusable, match=re.escape(f"at {place}:")) as caught:
        read_keys(path)
    assert "secret-text" not in str(caught.value)


def test_a_server_does_not_start_without_the_file_that_it_is_told_to_use(path):
    with pytest.raises(KeyFileUnusable, match="cannot be read"):
        create_app(Settings(api_keys_file=path))


def test_the_file_is_for_its_owner_only_and_is_replaced_in_one_step(path):
    key = add_key(path)
    before = path.stat()
    add_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_ino != before.st_ino
    assert key not in path.read_text()
    assert key.split("-", 2)[2] not in path.read_text()
    assert list(path.parent.iterdir()) == [path]


def test_a_change_that_fails_leaves_the_file_as_it_was(path):
    add_key(path)
    before = path.read_bytes()

    def change():
        with edit_keys(path) as records:
            records.clear()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change()
    assert path.read_bytes() == before


def test_an_issued_key_has_the_promised_form():
    made = [issue_key(tenant="acme") for _ in range(50)]
    assert all(re.fullmatch(r"ar-[0-9a-f]{12}-[A-Za-z0-9_-]{43}", each.text) for each in made)
    assert len({each.text for each in made}) == 50
    for each in made:
        assert each.record.sha256 == hashlib.sha256(each.text.encode()).hexdigest()


@pytest.mark.parametrize("kind", ["right", "wrong secret", "unknown id", "no form", "expired"])
def test_the_same_digests_are_made_and_compared_whatever_the_key(path, monkeypatch, kind):
    right = add_key(path)
    keys = {
        "right": right,
        "wrong secret": right[:-43] + "x" * 43,
        "unknown id": f"ar-unknown-{'x' * 43}",
        "no form": "hello",
        "expired": add_key(path, expires=NOW - timedelta(days=1)),
    }
    tried = KeyRing(["plain"], watched=WatchedKeys(path), now=lambda: NOW)
    calls = []

    def compare(one, other):
        calls.append((len(one), len(other)))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr("allrounder_service.api.auth.hmac.compare_digest", compare)
    assert is_let_in(tried, keys[kind]) == (kind == "right")
    assert calls == [(64, 64)] * 2


def test_neither_the_ring_nor_its_errors_show_a_key(path):
    key = add_key(path)
    tried = ring(path)
    secret = key.split("-", 2)[2]
    assert secret not in repr(vars(tried))
    assert secret not in repr(KeyFile(keys=read_keys(path).keys))
    with pytest.raises(AuthenticationFailed) as caught:
        tried.caller_of(Headers(bearer(key + "x")))
    assert secret not in str(caught.value)


async def test_a_key_is_in_no_log_no_metric_and_no_error(serve, path, caplog):
    caplog.set_level(logging.DEBUG)
    key = add_key(path, requests_per_minute=2)
    async with serve(api_keys_file=path) as served:
        answers = [
            (await served.client.get("/v1/models", headers=headers)).text
            for headers in (bearer(key), bearer(key[:-1]), {"Authorization": key}, bearer(key)) * 2
        ]
        metrics = (await served.client.get("/metrics")).text
    secret = key.split("-", 2)[2][:-1]
    logged = json.dumps([vars(each) for each in caplog.records], default=str)
    assert not [text for text in (*answers, metrics, logged) if secret in text]


@pytest.mark.timeout(300)
async def test_made_up_keys_paths_and_models_add_no_series(serve, path, long_form):
    key = add_key(path)
    draw = random.Random(1)

    def word():
        return "".join(draw.choices(string.ascii_letters + string.digits, k=12))

    async def visit():
        await served.client.get(f"/{word()}/{word()}")
        await served.client.get("/v1/models", headers=bearer(f"ar-{word().lower()}-{'x' * 43}"))
        body = {"model": word(), "messages": [{"role": "user", "content": word()}]}
        await served.client.post("/v1/chat/completions", json=body, headers=bearer(key))

    async with serve(api_keys_file=path) as served:
        await visit()
        await served.client.get("/metrics")
        before = series((await served.client.get("/metrics")).text)
        for _ in range(3333 if long_form else 200):
            await visit()
        assert series((await served.client.get("/metrics")).text) == before
