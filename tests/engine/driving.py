"""Drive a runner to the end, and the slow reference that its answers are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from app.core import ChatRequest, ChatResult, Plan
from app.engine.runner import ModelRunner
from app.engine.sequence import Sequence as DeviceSequence
from app.errors import AllrounderError

TIE = 1e-4


def answers(runner: ModelRunner, requests: Sequence[ChatRequest]) -> dict[str, ChatResult]:
    """Begin all requests together and step until each has ended."""
    live = begin(runner, requests)
    results: dict[str, ChatResult] = {}
    while live:
        for outcome in runner.step(live):
            assert outcome.error is None
            if outcome.result is not None:
                results[outcome.request_id] = outcome.result
        live = [sequence for sequence in live if sequence.request.id not in results]
    return results


def begin(runner: ModelRunner, requests: Sequence[ChatRequest]) -> list[DeviceSequence]:
    begun = []
    for entry in runner.begin([runner.prepare(request) for request in requests]):
        assert not isinstance(entry, AllrounderError), entry
        assert isinstance(entry, DeviceSequence)
        begun.append(entry)
    return begun


class Reference:
    """transformers' own modules with nothing dropped: what is pruned is masked or undone."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: Any) -> None:
        self.model = model
        self._processor = processor
        model.set_attn_implementation("eager")

    def inputs(self, request: ChatRequest, token_ids: Sequence[int]) -> dict[str, Tensor]:
        pictures = [
            Image.fromarray(np.frombuffer(i.rgb, np.uint8).reshape(i.height, i.width, 3))
            for i in request.images
        ]
        pixels = self._processor.image_processor(images=pictures, return_tensors="pt")
        ids = torch.tensor([list(token_ids)])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels["pixel_values"],
        }

    @torch.inference_mode()
    def generate(self, request: ChatRequest, token_ids: Sequence[int]) -> list[int]:
        inputs = self.inputs(request, token_ids)
        output = self.model.generate(
            **inputs, max_new_tokens=request.sampling.max_tokens, do_sample=False
        )
        return output[0, len(token_ids) :].tolist()

    @torch.inference_mode()
    def logits(
        self, request: ChatRequest, prompt_ids: Sequence[int], generated: Sequence[int], plan: Plan
    ) -> Tensor:
        """Logits of each generated position under `plan`, by masking: len(generated) x vocab."""
        ids = [*prompt_ids, *generated[:-1]]
        inputs = self.inputs(request, ids)
        decoder = self.model.model.language_model
        embedded = self._merged(inputs)
        positions = torch.arange(len(ids))[None]
        rotation = decoder.rotary_emb(embedded, positions)
        visual = (inputs["input_ids"][0] == self.model.config.image_token_id).nonzero()[:, 0]
        hidden = embedded
        for layer_idx, layer in enumerate(decoder.layers):
            if plan.runs[layer_idx]:
                mask = _mask(len(ids), visual, plan, layer_idx)
                hidden = layer(hidden, attention_mask=mask, position_embeddings=rotation)
        rows = hidden[0, len(prompt_ids) - 1 :]
        return self.model.lm_head(decoder.norm(rows))

    def _merged(self, inputs: dict[str, Tensor]) -> Tensor:
        model = self.model.model
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        features = torch.cat(
            model.get_image_features(
                pixel_values=inputs["pixel_values"], return_dict=True
            ).pooler_output
        )
        mask = inputs["input_ids"] == self.model.config.image_token_id
        return embedded.masked_scatter(mask[..., None], features)


def _mask(num_rows: int, visual: Tensor, plan: Plan, layer_idx: int) -> Tensor:
    """Causal, with the keys of dropped visual rows hidden from every row but themselves."""
    visible = torch.ones(num_rows, num_rows, dtype=torch.bool).tril()
    for selection in plan.selections:
        if selection.layer_idx <= layer_idx:
            assert selection.kept is not None
            dropped = torch.ones(len(visual), dtype=torch.bool)
            dropped[list(selection.kept)] = False
            visible[:, visual[dropped]] = False
    visible |= torch.eye(num_rows, dtype=torch.bool)
    return torch.zeros(1, 1, num_rows, num_rows).masked_fill(~visible, float("-inf"))


def assert_same_tokens(ours: Sequence[int], theirs: Sequence[int], reference: Tensor) -> None:
    """Equal token for token, up to a near-tie of the reference's two best logits."""
    for at, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        best = reference[at].topk(2).values
        if mine != other:
            assert best[0] - best[1] < TIE, f"position {at}: {mine} != {other}, no tie"
            return
    assert len(ours) == len(theirs)
