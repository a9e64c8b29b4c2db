"""What loads, what is refused, and how the refusal reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.errors import ModelUnsupported
from app.models.loading import fingerprint, load_adapter
from tests.tiny import tiny_llava_folder


def test_an_unknown_architecture_is_refused_naming_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelUnsupported, match=r"supported: .*\bllava\b"):
        load_adapter(str(tmp_path))


def test_a_name_that_is_no_folder_needs_hub_access() -> None:
    with pytest.raises(ModelUnsupported, match="no local folder"):
        load_adapter("some/model")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="float99"):
        load_adapter(str(tiny_llava_folder(tmp_path / "m")), dtype="float99")


def test_a_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    first = fingerprint(tiny_llava_folder(tmp_path / "a", seed=0))
    same = fingerprint(tiny_llava_folder(tmp_path / "b", seed=0))
    other = fingerprint(tiny_llava_folder(tmp_path / "c", seed=1))
    assert first == same != other
