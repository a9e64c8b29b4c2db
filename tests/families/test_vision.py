"""What is seen of a vision tower is what the library's eager attention computes there."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from allrounder.core import ImageInput
from allrounder.models.families.vision_tower import watched_layer
from allrounder.models.transformers import TransformersAdapter
from tests.families.cases import FamilyCase
from tests.families.reference import Reference
from tests.tiny import chat_request, noise_image

pytestmark = pytest.mark.timeout(200)
TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")
WITH_CLASS = ("llava", "llava_next", "internvl")


def _images(case: FamilyCase) -> list[ImageInput]:
    return [
        noise_image(idx, width=width, height=height)
        for idx, (width, height) in enumerate(case.sizes)
    ]


def _watched_attention(name: str, model: Any) -> Any:
    if name.startswith("qwen"):
        blocks = model.model.visual.blocks
        return blocks[-1 if name == "qwen2_5_vl" else -2].attn
    if name == "internvl":
        return model.model.vision_tower.encoder.layer[-2].attention
    tower = (
        model.model.vision_model if name in ("idefics3", "smolvlm") else model.model.vision_tower
    )
    return tower.encoder.layers[-2].self_attn


def _eager(
    case: FamilyCase, model: Any, pixels: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, Any]:
    """Attention H x Q x P and keys P x E of the watched layer, tile by tile, and the output."""
    attention = _watched_attention(case.name, model)
    module = sys.modules[type(attention).__module__]
    eager, seen = module.eager_attention_forward, []

    def spy(layer: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = eager(layer, query, key, *args, **kwargs)
        if layer is attention:
            seen.append((weights, key.transpose(1, 2).flatten(2)))
        return output, weights

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(module, "eager_attention_forward", spy)
        output = model.get_image_features(**pixels, output_hidden_states=True, return_dict=True)
    weights, keys = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return weights, keys, output


def _patches(case: FamilyCase, model: Any, weights: Tensor, keys: Tensor, output: Any) -> Tensor:
    """Attention, keys and features of each patch, side by side: N x P x C."""
    if case.name in WITH_CLASS:
        attention, keys = weights[:, :, 0, 1:], keys[:, 1:]
    else:
        attention = weights.mean(2)
    if case.name.startswith("llava"):
        features = output.hidden_states[model.config.vision_feature_layer]
    else:
        features = output.last_hidden_state
    if case.name in WITH_CLASS:
        features = features[:, 1:]
    features = features.reshape(*keys.shape[:2], -1)
    return torch.cat([attention.transpose(1, 2), keys, features], dim=-1)


def _tokens(case: FamilyCase, model: Any, patches: Tensor, pixels: dict[str, Tensor]) -> Tensor:
    """Means of the patches that the library merges into each token: V x C."""
    if case.name == "llava":
        return patches[0]
    if case.name in ("llava_next", "llava_onevision"):
        own = (
            {"vision_aspect_ratio": model.config.vision_aspect_ratio}
            if case.name == "llava_onevision"
            else {"vision_feature_select_strategy": "default"}
        )
        (packed,), _ = model.model.pack_image_features(
            [patches], pixels["image_sizes"], image_newline=torch.zeros(patches.shape[-1]), **own
        )
        return packed
    ids = torch.arange(patches.shape[1]).float()
    if case.name == "internvl":
        side = round(len(ids) ** 0.5)
        groups = model.model.pixel_shuffle(ids.view(1, side, side, 1)).flatten(0, 2)
        return patches[:, groups.long()].mean(2).flatten(0, 1)
    if case.name in ("idefics3", "smolvlm"):
        scale = model.config.scale_factor
        groups = model.model.connector.pixel_shuffle(ids.view(1, -1, 1), scale)[0]
        return patches[:, groups.long()].mean(2).flatten(0, 1)
    visual, patches = model.model.visual, patches[0]
    if case.name == "qwen2_5_vl":
        window_index, _ = get_vision_window_index(
            pixels["image_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        order = visual.permute_input_for_window_attn(ids[:, None], window_index, len(ids))
        patches = torch.empty_like(patches).index_copy(0, order[:, 0].long(), patches)
    return patches.unflatten(0, (-1, visual.spatial_merge_size**2)).mean(1)


def test_facts_of_each_token_are_those_of_eager_attention(
    case: FamilyCase,
    adapter: TransformersAdapter,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = _images(case)
    for image, visual in zip(images, adapter.encode(images, with_facts=True), strict=True):
        inputs = reference.inputs(chat_request(images=(image,)))
        pixels = {name: value for name, value in inputs.items() if name not in TEXT}
        weights, keys, output = _eager(case, reference.model, pixels, monkeypatch)
        patches = _patches(case, reference.model, weights, keys, output)
        expected = _tokens(case, reference.model, patches, pixels)
        facts = visual.facts
        assert facts is not None
        ours = torch.cat([facts.attention_HV.T, facts.keys_VE, facts.features_VF], dim=-1)
        assert len(ours) == len(visual.tokens_VD)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_tokens_are_the_same_with_facts_and_without(
    case: FamilyCase, adapter: TransformersAdapter
) -> None:
    images = _images(case)
    plain, seen = adapter.encode(images), adapter.encode(images, with_facts=True)
    for without, with_facts in zip(plain, seen, strict=True):
        assert without.facts is None
        assert torch.equal(without.tokens_VD, with_facts.tokens_VD)
        assert with_facts.nbytes > without.nbytes


def test_what_the_look_costs_counts_every_patch_of_every_tile(
    case: FamilyCase, adapter: TransformersAdapter, reference: Reference
) -> None:
    vision = adapter.geometry.vision
    assert vision is not None
    assert vision.has_class == (case.name in WITH_CLASS)
    for image in _images(case):
        inputs = reference.inputs(chat_request(images=(image,)))
        layout = adapter.layout(image)
        if "image_grid_thw" in inputs:
            expected = int(inputs["image_grid_thw"].prod())
        else:
            patch = reference.model.config.vision_config.patch_size
            area = patch[0] * patch[1] if not isinstance(patch, int) else patch**2
            *tiles, _, height, width = inputs["pixel_values"].shape
            expected = int(torch.tensor(tiles).prod()) * height * width // area
        assert sum(layout.tiles) == expected


def test_the_watched_layer_is_the_last_but_one_or_the_last_that_sees_everything() -> None:
    assert watched_layer(24) == 22
    assert watched_layer(32, among=[7, 15, 23, 31]) == 23
    assert watched_layer(2, among=[1]) == 1
    assert watched_layer(1) == 0
