"""The slow truth of what leaves, merges and is numbered anew on the way: float64, one request.

transformers' own decoder layers run one by one over the rows that are left; an act between them
says what becomes of the visual rows. Prompt, positions and projected tokens are given.

Shapes: R rows, P position axes, D width, V visual tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from allrounder.core import ChatRequest
from allrounder.models.transformers import TransformersAdapter


@dataclass(kw_only=True)
class Rows:
    """Rows that are left at a layer.

    Attributes:
        hidden: R x D.
        ids: row of the unpruned prompt and answer that each one was.
        positions: P x R.
        visual: unpruned row of each visual token.
        planes: V x D each; plane i is added to the visual rows behind layer i.
        prompt: how many rows the unpruned prompt has.
        attention: H x R x R of the last layer run.
        kept: layer -> visual tokens left from there on, as indexes among all of them.
    """

    hidden: Tensor
    ids: list[int]
    positions: Tensor
    visual: list[int]
    planes: list[Tensor]
    prompt: int
    attend: Callable[[int], Tensor]
    attention: Tensor | None = None
    kept: dict[int, list[int]] = field(default_factory=dict)

    def left(self) -> list[int]:
        """Visual tokens that are left."""
        return [idx for idx, row in enumerate(self.visual) if row in self.ids]

    def at(self, row: int) -> int:
        return self.ids.index(row)

    def keep(
        self,
        layer_idx: int,
        kept: Sequence[int],
        *,
        merge: dict[int, dict[int, float]] | None = None,
        renumber: bool = False,
    ) -> None:
        """Only the visual tokens `kept` go on, as sums {token: {of token: weight}} if given."""
        hidden, planes = self.hidden.clone(), [plane.clone() for plane in self.planes]
        for token, parts in (merge or {}).items():
            hidden[self.at(self.visual[token])] = sum(
                weight * self.hidden[self.at(self.visual[part])] for part, weight in parts.items()
            )
            for new, old in zip(planes, self.planes, strict=True):
                new[token] = sum(weight * old[part] for part, weight in parts.items())
        self.planes = planes
        gone = {self.visual[idx] for idx in self.left()} - {self.visual[idx] for idx in kept}
        stay = [idx for idx, row in enumerate(self.ids) if row not in gone]
        self.hidden = hidden[stay]
        self.ids = [self.ids[idx] for idx in stay]
        self.positions = self.positions[:, stay]
        if renumber:
            self.positions = torch.arange(len(stay))[None]
        self.kept[layer_idx] = list(kept)


Act = Callable[[int, Rows], None]
"""Called at the input of each layer."""


class SlowDecoder:
    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def run(
        self,
        adapter: TransformersAdapter,
        request: ChatRequest,
        generated: Sequence[int],
        act: Act,
        *,
        runs: Sequence[bool] | None = None,
    ) -> tuple[Tensor, Rows]:
        """Logits of each generated position, and the rows that were left."""
        decoder = self.model.get_decoder()
        layouts = [adapter.layout(image) for image in request.images]
        prompt = adapter.prompt(request.question, layouts)
        given = adapter.positions(prompt, layouts)
        images = adapter.encode(request.images)
        tokens = torch.cat([each.tokens_VD for each in images])
        planes = zip(*(each.planes for each in images), strict=True)
        ids = [*prompt.token_ids, *generated[:-1]]
        hidden = decoder.get_input_embeddings()(torch.tensor(ids)).clone()
        hidden[list(prompt.visual_rows)] = tokens.double()
        tail = torch.arange(len(generated) - 1) + given.next
        positions = torch.cat([given.rows_PT, tail.expand(len(given.rows_PT), -1)], dim=1)
        rows = Rows(
            hidden=hidden,
            ids=list(range(len(ids))),
            positions=positions,
            visual=list(prompt.visual_rows),
            planes=[torch.cat(plane).double() for plane in planes],
            prompt=len(prompt.token_ids),
            attend=lambda layer_idx: self._layer(layer_idx, rows)[1],
        )
        for layer_idx in range(len(decoder.layers)):
            act(layer_idx, rows)
            if runs is None or runs[layer_idx]:
                rows.hidden, rows.attention = self._layer(layer_idx, rows)
            if layer_idx < len(rows.planes):
                for idx in rows.left():
                    rows.hidden[rows.at(rows.visual[idx])] += rows.planes[layer_idx][idx]
        logits = self.model.get_output_embeddings()(decoder.norm(rows.hidden))
        return logits[-len(generated) :], rows

    def _layer(self, layer_idx: int, rows: Rows) -> tuple[Tensor, Tensor]:
        decoder = self.model.get_decoder()
        layer, seen = decoder.layers[layer_idx], []
        size = len(rows.ids)
        future = torch.ones(size, size, dtype=torch.bool).triu(1)
        mask = torch.zeros(1, 1, size, size, dtype=torch.float64).masked_fill(future, -1e30)
        axes = rows.positions if len(rows.positions) == 1 else rows.positions[:, None]
        handle = layer.self_attn.register_forward_hook(lambda *given: seen.append(given[2][1]))
        try:
            output = layer(
                rows.hidden[None],
                attention_mask=mask,
                position_embeddings=decoder.rotary_emb(rows.hidden[None], axes),
            )
        finally:
            handle.remove()
        return output[0], seen[0][0]
