"""What loads, what is refused, and how the refusal reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlavaConfig, MistralConfig, PreTrainedConfig, Qwen2_5_VLConfig

from allrounder.errors import ModelUnsupported
from allrounder.models.loading import fingerprint, load_adapter
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


@pytest.mark.parametrize(
    "config",
    [
        Qwen2_5_VLConfig(
            text_config={
                "num_hidden_layers": 4,
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 3,
            }
        ),
        LlavaConfig(text_config=MistralConfig(sliding_window=64)),
    ],
    ids=["some layers", "every layer"],
)
def test_sliding_window_attention_is_refused_before_weights_are_read(
    tmp_path: Path, config: PreTrainedConfig
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelUnsupported, match="sliding-window attention"):
        load_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        Qwen2_5_VLConfig(text_config={"use_sliding_window": False, "sliding_window": 64}),
        Qwen2_5_VLConfig(
            text_config={
                "num_hidden_layers": 4,
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 4,
            }
        ),
        LlavaConfig(text_config=MistralConfig(sliding_window=None)),
        LlavaConfig(text_config=MistralConfig(sliding_window=4096, max_position_embeddings=4096)),
    ],
    ids=["switched off", "on no layer", "none", "as long as the context"],
)
def test_a_window_that_hides_nothing_is_no_reason_to_refuse(
    tmp_path: Path, config: PreTrainedConfig
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load_adapter(str(tmp_path))
