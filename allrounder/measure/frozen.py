"""A frozen model's dense answers, and the divergence of given plans from them.

Runs the engine's own loop. Many questions and plans share a forward pass; dropped tokens and
skipped layers are absent from it, so what is measured is what is served.

Shapes: S rows of a prompt, R rows of a sequence, V visual tokens, T answer tokens, H query heads,
K key heads, E head size, D width, N vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from allrounder.core import ImageInput, ImageLayout, Plan, Prompt
from allrounder.engine.execution.attention.sdpa import attend
from allrounder.engine.execution.batch import Segment, as_planned, prompt_rows
from allrounder.engine.execution.decoder import DecoderLoop
from allrounder.engine.execution.kv_cache import SequenceKv
from allrounder.measure.divergence import Divergence
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import ImageFeatures, PromptPositions
from allrounder.pruning.strategy import Probe

MAX_PACKED_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class EncodedQuestion:
    """One question about one encoded image."""

    prompt: Prompt
    positions: PromptPositions
    visual: ImageFeatures
    layouts: tuple[ImageLayout, ...] = ()

    @property
    def visual_VD(self) -> Tensor:
        return self.visual.tokens_VD


@dataclass(kw_only=True)
class DenseAnswer:
    """The frozen model's greedy answer.

    Attributes:
        attention: layer -> H x S x V attention of the text rows, last row last, where probed.
    """

    asked: EncodedQuestion
    attention: dict[int, Tensor]
    token_ids: list[int] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)

    @property
    def log_probs_TN(self) -> Tensor:
        return torch.stack(self.steps)

    @property
    def num_visual(self) -> int:
        return len(self.asked.visual_VD)


class FrozenModel:
    """Dense answers and trials of plans on one adapter; changes nothing of it."""

    def __init__(self, adapter: Adapter, *, max_answer_tokens: int = 32) -> None:
        self.adapter = adapter
        self._loop = DecoderLoop(adapter)
        self._max_answer_tokens = max_answer_tokens

    @property
    def num_layers(self) -> int:
        return self.adapter.geometry.num_layers

    def encode(self, image: ImageInput, *, with_facts: bool = False) -> ImageFeatures:
        """Visual tokens that may enter a gradient; with facts for strategies that need vision."""
        visual = self.adapter.encode([image], with_facts=with_facts)[0]
        return replace(visual, tokens_VD=visual.tokens_VD.clone())

    def ask(self, image: ImageInput, visual: ImageFeatures, question: str) -> EncodedQuestion:
        layouts = (self.adapter.layout(image),)
        prompt = self.adapter.prompt(question, layouts)
        positions = self.adapter.positions(prompt, layouts)
        return EncodedQuestion(prompt=prompt, positions=positions, visual=visual, layouts=layouts)

    def question_rows(self, asked: EncodedQuestion) -> Tensor:
        """Word embeddings of the text after the image, Q x D: what the router reads."""
        start, count = asked.prompt.question_slot
        return self.adapter.embed(asked.prompt.token_ids[start : start + count])

    @torch.inference_mode()
    def answer(
        self, asked: Sequence[EncodedQuestion], *, probed_layers: Sequence[int] = ()
    ) -> list[DenseAnswer]:
        """Greedy answers of the unpruned model, decoded together."""
        probes = tuple(Probe(layer_idx=idx, rows="text") for idx in sorted(set(probed_layers)))
        return self._greedy([(one, self._dense(one)) for one in asked], probes)

    @torch.inference_mode()
    def decode(self, trials: Sequence[tuple[DenseAnswer, Plan]]) -> list[list[int]]:
        """The token ids of greedy answers under the plans; only the question of each is used."""
        return [
            found.token_ids
            for chunk in _packs(trials)
            for found in self._greedy([(answer.asked, plan) for answer, plan in chunk])
        ]

    @torch.inference_mode()
    def compare(self, trials: Sequence[tuple[DenseAnswer, Plan]]) -> list[Divergence]:
        """Teacher-forced on the dense answer, over the full vocabulary, in float32."""
        found: list[Divergence] = []
        for chunk in _packs(trials):
            segments = [
                self._segment(answer.asked, plan, tail_ids=answer.token_ids[:-1])
                for answer, plan in chunk
            ]
            tails = [len(answer.token_ids) for answer, _ in chunk]
            logits = self.adapter.logits(self._loop.forward(segments, tails=tails))
            pieces = logits.log_softmax(-1).split(tails)
            found += [
                Divergence.between(
                    answer.log_probs_TN,
                    pruned_TN,
                    agrees=answer.token_ids == pruned_TN.argmax(-1).tolist(),
                )
                for (answer, _), pruned_TN in zip(chunk, pieces, strict=True)
            ]
        return found

    def _greedy(
        self, asked: Sequence[tuple[EncodedQuestion, Plan]], probes: tuple[Probe, ...] = ()
    ) -> list[DenseAnswer]:
        segments = [self._segment(one, plan, probes=probes) for one, plan in asked]
        answers = [
            DenseAnswer(asked=one, attention=segment.attention)
            for (one, _), segment in zip(asked, segments, strict=True)
        ]
        running = list(zip(answers, segments, strict=True))
        while running:
            hidden_BD = self._loop.forward([segment for _, segment in running])
            log_probs_BN = self.adapter.logits(hidden_BD).log_softmax(-1)
            going = []
            for (answer, segment), log_probs_N in zip(running, log_probs_BN, strict=True):
                answer.steps.append(log_probs_N)
                answer.token_ids.append(int(log_probs_N.argmax()))
                if not self._has_ended(answer):
                    going.append((answer, self._next_segment(answer, segment)))
            running = going
        return answers

    def _dense(self, asked: EncodedQuestion) -> Plan:
        return Plan.dense(num_layers=self.num_layers, num_visual=len(asked.visual_VD))

    def _has_ended(self, answer: DenseAnswer) -> bool:
        ended = answer.token_ids[-1] in self.adapter.eos_token_ids
        return ended or len(answer.token_ids) >= self._max_answer_tokens

    def _next_segment(self, answer: DenseAnswer, before: Segment) -> Segment:
        positions = answer.asked.positions
        position = positions.next + len(answer.token_ids) - 1
        return Segment(
            plan=before.plan,
            kv=before.kv,
            hidden_SD=self.adapter.embed(answer.token_ids[-1:]),
            positions_PS=torch.full((positions.rows_PT.shape[0], 1), position),
        )

    def _segment(
        self,
        asked: EncodedQuestion,
        plan: Plan,
        *,
        tail_ids: Sequence[int] = (),
        probes: tuple[Probe, ...] = (),
    ) -> Segment:
        """Prompt and response rows; visual rows dropped at layer 0 never enter."""
        rows = prompt_rows(
            self.adapter, asked.prompt, asked.positions, asked.visual, plan, tail_ids=tail_ids
        )
        late = bool(plan.selections) and plan.last_selection_layer > 0
        return Segment(
            plan=plan,
            kv=SequenceKv(),
            hidden_SD=rows.hidden_SD,
            positions_PS=rows.positions_PS,
            visual_rows=rows.visual_rows,
            visual_ids=rows.visual_ids,
            planes=rows.planes,
            probes=probes,
            choose=as_planned(plan) if late else None,
        )


def _packs(
    trials: Sequence[tuple[DenseAnswer, Plan]],
) -> Iterator[list[tuple[DenseAnswer, Plan]]]:
    """Runs of trials whose rows at layer 0 stay under the cap, at least one trial each."""
    pack: list[tuple[DenseAnswer, Plan]] = []
    used = 0
    for answer, plan in trials:
        dropped = plan.num_visual - plan.visual_rows(0)
        rows = len(answer.asked.prompt.token_ids) + len(answer.token_ids) - dropped
        if pack and used + rows > MAX_PACKED_ROWS:
            yield pack
            pack, used = [], 0
        pack.append((answer, plan))
        used += rows
    if pack:
        yield pack


def causal_attention(
    query_RHE: Tensor, key_RKE: Tensor, value_RKE: Tensor, scaling: float
) -> Tensor:
    """R x HE of one whole sequence, for passes that run layer by layer without a KV cache."""
    query, key, value = (each.transpose(0, 1)[None] for each in (query_RHE, key_RKE, value_RKE))
    return attend(query, key, value, scaling)[0].transpose(0, 1).flatten(1)
