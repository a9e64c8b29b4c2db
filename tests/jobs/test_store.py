"""Bytes on the volume: named by content, durable, private, and removed once unreferenced."""

from __future__ import annotations

import hashlib
import os
import stat
import time

import pytest

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.files import FileRepository, NewUpload
from allrounder_service.jobs.records import (
    derived_file_id,
    derived_line_id,
    new_batch_id,
    new_file_id,
)
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import PageRequest, UnknownCursor
from allrounder_service.jobs.sweeper import Sweeper

OLD = 2 * keys.DRAFT_SECONDS


@pytest.fixture
def store(tmp_path):
    made = BlobStore(tmp_path / "files")
    made.prepare()
    return made


@pytest.fixture
async def client(redis_url):
    made = connect(redis_url)
    yield made
    await made.aclose()


@pytest.fixture
def sweeper(client, store):
    return Sweeper(client, store)


def put(store, data=b"one\ntwo\n", **owner):
    draft = store.draft(**owner)
    draft.write(data)
    return draft.commit()


def age(path, seconds=OLD):
    then = time.time() - seconds
    os.utime(path, (then, then))


def upload(sha256, *, tenant="a", seconds=0):
    return NewUpload(
        tenant=tenant, filename="in.jsonl", sha256=sha256, bytes=8, lines=2, seconds=seconds
    )


def everything(store):
    return sorted(path for path in store.blobs.parent.rglob("*") if path.is_file())


def test_content_is_found_under_its_digest_and_read_in_parts(store):
    sha256 = put(store)
    assert sha256 == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert store.read(sha256, 4, 3) == b"two"
    assert put(store) == sha256
    assert everything(store) == [store.blob_path(sha256)]


def test_a_discarded_draft_leaves_nothing(store):
    draft = store.draft()
    draft.write(b"half")
    draft.discard()
    assert everything(store) == []


def test_only_this_user_may_read_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        store = BlobStore(tmp_path / "files")
        store.prepare()
        batch = new_batch_id()
        put(store)
        store.put_result(batch, b"{}")
    finally:
        os.umask(old)
    below = [tmp_path / "files" / "blobs", *(tmp_path / "files").rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in below}
    assert modes == {0o700, 0o600}


def test_responses_are_kept_by_batch_and_removed_with_it(store):
    batch, other = new_batch_id(), new_batch_id()
    sha256 = store.put_result(batch, b'{"a": 1}')
    assert store.put_result(batch, b'{"a": 1}') == sha256
    kept = store.put_result(other, b'{"a": 1}')
    assert store.read_result(batch, sha256) == b'{"a": 1}'
    store.remove_results(batch)
    with pytest.raises(FileNotFoundError):
        store.read_result(batch, sha256)
    assert store.read_result(other, kept) == b'{"a": 1}'


def test_drafts_of_a_batch_are_found_after_their_writer_died(store):
    batch = new_batch_id()
    lost = store.draft(batch=batch, fence=1)
    lost.write(b"half")
    other = store.draft(batch=new_batch_id(), fence=1)
    store.discard_drafts(batch)
    other.write(b"whole")
    assert store.read(other.commit(), 0, 9) == b"whole"
    with pytest.raises(FileNotFoundError):
        lost.commit()
    assert len(everything(store)) == 1


@pytest.mark.parametrize("name", ["", ".", "..", "../../etc/passwd", "a" * 63, "A" * 64, "a/" * 32])
def test_no_path_is_built_from_a_name_of_another_form(store, name):
    for call in (store.open, store.touch, lambda name: store.read_result(new_batch_id(), name)):
        with pytest.raises(ValueError, match="own ids"):
            call(name)
    for call in (store.remove_results, store.discard_drafts):
        with pytest.raises(ValueError, match="own ids"):
            call(name)


def test_a_link_in_the_place_of_a_blob_is_not_followed(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("key")
    path = store.blob_path("a" * 64)
    path.parent.mkdir()
    path.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic"):
        store.open("a" * 64)


def test_ids_have_one_form_and_derived_ones_are_stable():
    batch = new_batch_id()
    assert len(new_file_id()) == len(derived_file_id(batch, "output")) == 29
    assert derived_file_id(batch, "output") == derived_file_id(batch, "output")
    assert derived_file_id(batch, "output") != derived_file_id(batch, "error")
    assert derived_line_id(batch, 1) != derived_line_id(batch, 11)


async def test_a_sweep_takes_only_what_is_old_and_unreferenced(store, client, sweeper):
    files = FileRepository(client)
    needed, fresh, unreferenced = put(store, b"n"), put(store, b"f"), put(store, b"u")
    await files.add(upload(needed))
    age(store.blob_path(needed))
    age(store.blob_path(unreferenced))
    assert await sweeper.sweep() == 1
    assert store.read(needed, 0, 1) == b"n"
    assert store.read(fresh, 0, 1) == b"f"
    with pytest.raises(FileNotFoundError):
        store.open(unreferenced)
    assert await sweeper.sweep() == 0


async def test_bytes_that_two_files_share_stay_until_both_are_deleted(store, client, sweeper):
    files = FileRepository(client)
    sha256 = put(store)
    mine, theirs = await files.add(upload(sha256)), await files.add(upload(sha256, tenant="b"))
    age(store.blob_path(sha256))
    assert await files.drop("a", mine.id)
    assert await sweeper.sweep() == 0
    assert not await files.drop("a", theirs.id)
    assert await files.drop("b", theirs.id)
    assert await sweeper.sweep() == 1


async def test_bytes_touched_while_the_sweeper_holds_them_come_back(store, client, sweeper):
    sha256 = put(store)
    await sweeper.sweep()
    age(store.blob_path(sha256))
    store.touch(sha256)
    store.blob_path(sha256).rename(store.trash / sha256)
    assert await sweeper.sweep() == 0
    assert store.read(sha256, 0, 3) == b"one"
    age(store.blob_path(sha256))
    store.blob_path(sha256).rename(store.trash / sha256)
    assert await sweeper.sweep() == 1
    assert not store.touch(sha256)


async def test_dead_drafts_and_responses_of_finished_batches_are_swept(store, client, sweeper):
    over, running, unknown = (new_batch_id() for _ in range(3))
    for batch in (over, running, unknown):
        store.put_result(batch, b"{}")
        age(store.results / batch)
    await client.hset(key("batch", over), "swept", "1")
    await client.hset(key("batch", running), "swept", "0")
    dead, live = store.draft(), store.draft()
    age(dead._path)
    live.write(b"x")
    assert await sweeper.sweep() == 3
    assert [path.name for path in store.results.iterdir()] == [running]
    live.commit()
    dead.discard()


async def test_a_volume_is_not_swept_for_a_queue_that_does_not_know_it(store, client, sweeper):
    sha256 = put(store)
    await sweeper.sweep()
    age(store.blob_path(sha256))
    await client.flushall()
    assert await sweeper.sweep() == 0
    assert store.read(sha256, 0, 3) == b"one"


async def test_one_process_sweeps_in_a_while(store, client, sweeper):
    sha256 = put(store)
    await sweeper.sweep()
    age(store.blob_path(sha256))
    assert await sweeper.sweep_if_due() == 1
    age(store.blob_path(put(store)))
    assert await sweeper.sweep_if_due() == 0
    assert 0 < await client.ttl(key("sweeping")) <= keys.SWEEP_SECONDS


async def test_files_expire_when_their_time_is_over(store, client):
    files = FileRepository(client)
    kept, short = await files.add(upload("a" * 64)), await files.add(upload("a" * 64, seconds=1))
    assert short.expires_at == short.created_at + 1
    assert await files.get("a", short.id) == short
    await client.zadd(key("expiries"), {short.id: short.created_at - 5})
    assert await files.expire() == 1
    assert await files.get("a", short.id) is None
    assert await files.get("a", kept.id) == kept
    assert await client.smembers(key("blob", "a" * 64)) == {kept.id}


async def test_pages_follow_each_other_in_both_orders_and_for_one_purpose(client):
    files = FileRepository(client)
    ids = [(await files.add(upload("a" * 64))).id for _ in range(7)]
    await client.hset(key("file", ids[2]), "purpose", "batch_output")
    for newest_first in (True, False):
        after, seen = "", []
        while True:
            wanted = PageRequest(limit=3, after=after, newest_first=newest_first)
            page = await files.page("a", wanted)
            seen += [each.id for each in page.items]
            if not page.has_more:
                break
            after = seen[-1]
        assert sorted(seen) == sorted(ids)
        assert seen == sorted(seen, key=seen.index)
    only = await files.page("a", PageRequest(limit=10), purpose="batch_output")
    assert [each.id for each in only.items] == [ids[2]]
    none = await files.page("b", PageRequest(limit=10))
    assert (none.items, none.has_more) == ((), False)
    with pytest.raises(UnknownCursor):
        await files.page("b", PageRequest(limit=10, after=ids[0]))
