"""Cells are found under an equal key only, and are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from allrounder.evaluation.cell_store import CellStore, write_whole

KEY = {"kind": "trial", "strategy": "fastv+shortgpt", "budget": {"tokens": 24}, "seed": 0}


@pytest.mark.parametrize("on_disk", [True, False])
def test_only_an_equal_key_finds_what_was_kept(tmp_path: Path, on_disk: bool) -> None:
    store = CellStore(tmp_path if on_disk else None)
    store.keep(KEY, {"answers": ["a"]})
    assert store.find(dict(reversed(KEY.items()))) == {"answers": ["a"]}
    assert store.find({**KEY, "seed": 1}) is None
    assert (CellStore(tmp_path).find(KEY) is not None) == on_disk


def test_a_file_that_cannot_be_read_counts_as_missing(tmp_path: Path, caplog) -> None:
    store = CellStore(tmp_path)
    store.keep(KEY, {"answers": []})
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("trial-fastv+shortgpt-tokens-24-")
    path.write_text(path.read_text()[:20])
    assert store.find(KEY) is None
    assert path.name in caplog.text


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_said_in_json_is_not_kept(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        store.keep(KEY, {"kl_nats": [float("nan")]})
    assert list(tmp_path.iterdir()) == []
