"""The slow truth: plain transformers on the same folder, with what a plan drops masked or undone.

Uses the library's own processor, forward and `generate`; nothing of `app`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from allrounder.core import ChatRequest, Plan
from tests.families.saving import without_torchvision

TIE = 1e-4


class Reference:
    """One folder, loaded as any user of transformers would."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with without_torchvision():
            self.processor: Any = AutoProcessor.from_pretrained(folder)

    def inputs(self, request: ChatRequest) -> dict[str, Tensor]:
        """The request's conversation through the library's own processor."""
        text = self.processor.apply_chat_template(
            [
                {"role": message.role.value, "content": [_part(part) for part in message.parts]}
                for message in request.conversation
            ],
            add_generation_prompt=True,
        )
        pictures = [
            Image.fromarray(np.frombuffer(i.rgb, np.uint8).reshape(i.height, i.width, 3))
            for i in request.images
        ]
        return dict(
            self.processor(
                images=pictures or None, text=text, return_tensors="pt", add_special_tokens=False
            )
        )

    @torch.inference_mode()
    def generate(self, request: ChatRequest) -> tuple[list[int], list[int]]:
        """Prompt ids and greedily generated ids."""
        inputs = self.inputs(request)
        output = self.model.generate(
            **inputs, max_new_tokens=request.sampling.max_tokens, do_sample=False
        )
        length = inputs["input_ids"].shape[1]
        return output[0, :length].tolist(), output[0, length:].tolist()

    @torch.inference_mode()
    def logits(self, request: ChatRequest, generated: Sequence[int], plan: Plan) -> Tensor:
        """Logits of each generated position under `plan`, by masking: len(generated) x vocab."""
        inputs = self.inputs(request)
        length = inputs["input_ids"].shape[1]
        tail = torch.tensor([generated[:-1]], dtype=torch.long)
        for name, grown in (("input_ids", tail), ("attention_mask", torch.ones_like(tail))):
            inputs[name] = torch.cat([inputs[name], grown], dim=1)
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(tail)], dim=1)
        ids = inputs["input_ids"][0]
        visual = (ids == self.model.config.image_token_id).nonzero()[:, 0]
        with self._pruned(plan, len(ids), visual):
            return self.model(**inputs, use_cache=False).logits[0, length - 1 :]

    @contextmanager
    def _pruned(self, plan: Plan, num_rows: int, visual: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            for layer_idx, layer in enumerate(self.model.get_decoder().layers):
                mask = _mask(num_rows, visual, plan, layer_idx)
                before = layer.register_forward_pre_hook(_with_mask(mask), with_kwargs=True)
                stack.callback(before.remove)
                if not plan.runs[layer_idx]:
                    after = layer.register_forward_hook(_undone, with_kwargs=True)
                    stack.callback(after.remove)
            yield


def _part(part: str | None) -> dict[str, str]:
    return {"type": "image"} if part is None else {"type": "text", "text": part}


def _with_mask(mask: Tensor) -> Callable[..., Any]:
    def hook(_layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    return hook


def _undone(_layer: Any, args: Any, kwargs: dict[str, Any], _output: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


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
