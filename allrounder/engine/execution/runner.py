"""The runner: the one owner of the device. Encodes, plans, and steps packed batches.

Satisfies `engine.protocols.Runner`. All but `capabilities` and `prepare` run on the engine's
thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Many
from typing import cast

import torch
from torch import Tensor

from allrounder.core import Capabilities, ChatRequest, ChatResult, FinishReason, Stage
from allrounder.engine.execution.lengths import fitted
from allrounder.engine.execution.memory import encoding_error, undone_without_memory
from allrounder.engine.execution.ragged import DecoderLoop
from allrounder.engine.execution.sampling import Sampler
from allrounder.engine.execution.scores import Scores
from allrounder.engine.execution.segment import Segment, as_planned
from allrounder.engine.execution.sequence import PreparedPrompt, Sequence
from allrounder.engine.execution.text import AnswerText
from allrounder.engine.planning.planner import DEFAULT_USE, CalibrationUse, Planner, request_seed
from allrounder.engine.protocols import ALL_ROWS, CacheCounts, Outcome, Prepared, Running
from allrounder.engine.scheduling.clock import StageClock
from allrounder.engine.scheduling.tickets import Demand
from allrounder.engine.vision.encoder import Encoder
from allrounder.engine.vision.resizing import resized
from allrounder.errors import AllrounderError, InternalError, InvalidField
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import VisualTokens
from allrounder.router.weights import LoadedRouter

logger = logging.getLogger(__name__)


class ModelRunner:
    """Runs one frozen LVLM with per-request plans in mixed batches."""

    def __init__(
        self,
        adapter: Adapter,
        router: LoadedRouter | None = None,
        *,
        max_images: int = 16,
        kv_bytes_limit: int = 4 << 30,
        encoder_cache_bytes: int = 256 << 20,
        calibration_use: CalibrationUse = DEFAULT_USE,
    ) -> None:
        self._adapter = adapter
        self._planner = Planner(adapter, router, calibration_use)
        self._loop = DecoderLoop(adapter)
        self._encoder = Encoder(adapter, cache_bytes=encoder_cache_bytes)
        self._max_images = min(max_images, adapter.max_images or max_images)
        self._kv_bytes_limit = kv_bytes_limit
        self._held: dict[str, Sequence] = {}
        self._kv_bytes_held = 0
        self._capabilities = self._describe(router)

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def prepare(self, request: ChatRequest) -> PreparedPrompt:
        if len(request.images) > self._max_images:
            raise InvalidField(
                f"at most {self._max_images} images, got {len(request.images)}", param="images"
            )
        layouts = tuple(self._adapter.layout(image) for image in request.images)
        prompt = self._adapter.converse(request.conversation, layouts)
        strategy, allocation = self._planner.resolve(request, prompt.shape, layouts)
        prepared = PreparedPrompt(
            request=request,
            prompt=prompt,
            shape=prompt.shape,
            layouts=layouts,
            strategy=strategy,
            allocation=allocation,
            seed=request_seed(request),
        )
        if strategy.token_part and strategy.token_part.resizes and allocation.plan.selections:
            prepared = resized(self._adapter, prepared)
        return fitted(prepared, self._adapter.geometry, kv_bytes_limit=self._kv_bytes_limit)

    def demand(self, prepared: Prepared) -> Demand:
        assert isinstance(prepared, PreparedPrompt)
        return prepared.demand(self._adapter.geometry)

    def begin(self, batch: Many[Prepared]) -> list[Running | AllrounderError]:
        started = time.monotonic()
        prompts = [cast(PreparedPrompt, prepared) for prepared in batch]
        try:
            visuals = self._encoder.encode(prompts)
        except Exception as err:
            if len(prompts) > 1:
                return [entry for prepared in prompts for entry in self.begin([prepared])]
            logger.exception("encoding failed")
            return [encoding_error(err)]
        encoded = time.monotonic() - started
        return [
            self._begin_one(prepared, visual, started, encoded)
            for prepared, visual in zip(prompts, visuals, strict=True)
        ]

    def step(self, work: Many[tuple[Running, int]]) -> list[Outcome]:
        sequences = [(cast(Sequence, entry), num_rows) for entry, num_rows in work]
        outcomes = [self._finish_plan(seq) for seq, _ in sequences if seq.request.plan_only]
        generating = [pair for pair in sequences if not pair[0].request.plan_only]
        if generating:
            started = time.monotonic()
            for sequence, _ in generating:
                if not sequence.prefilled:
                    sequence.clock.enters(Stage.PREFILL, started)
            logits_BN = self._forward(generating)
            outcomes += self._advance_all(generating, logits_BN, time.monotonic() - started)
        for sequence, _ in sequences:
            sequence.kv.store.compact()
        self._count_held()
        return outcomes

    def preempt(self, running: Running) -> None:
        assert isinstance(running, Sequence)
        running.restart()
        self._count_held()

    def finish(self, running: Running, reason: FinishReason) -> ChatResult:
        assert isinstance(running, Sequence)
        result = self._finish(running, reason)
        running.kv.store.compact()
        self._count_held()
        return result

    def release(self, running: Running) -> None:
        assert isinstance(running, Sequence)
        running.kv.release()
        self._held.pop(running.request.id, None)
        self._count_held()

    def encoder_cache(self) -> CacheCounts:
        return self._encoder.counts

    def kv_bytes_held(self) -> int:
        return self._kv_bytes_held

    def kv_bytes_limit(self) -> int:
        return self._kv_bytes_limit

    def _count_held(self) -> None:
        """On the engine's thread, so that other threads read one number and nothing that moves."""
        self._kv_bytes_held = sum(seq.kv.bytes_held for seq in self._held.values())

    def _begin_one(
        self, prepared: PreparedPrompt, visual: VisualTokens, started: float, encoded: float
    ) -> Running | AllrounderError:
        planning = time.monotonic()
        try:
            with torch.inference_mode():
                plan, weights = self._planner.choose_first(prepared, visual)
                positions = self._adapter.positions(prepared.prompt, prepared.layouts)
        except AllrounderError as err:
            return err
        except Exception:
            logger.exception("planning failed")
            return InternalError("the plan could not be made")
        sequence = Sequence(
            prepared=prepared,
            plan=plan,
            visual=visual,
            weights=weights,
            sampler=Sampler(prepared.request.sampling),
            text=AnswerText(self._adapter.text_stream(), prepared.request.sampling.stop),
            positions=positions,
            scores=self._scores(prepared.request),
            clock=StageClock(arrival=prepared.request.arrival, encode=encoded),
        )
        sequence.clock.enters(Stage.ENCODE, started)
        sequence.clock.enters(Stage.PLAN, planning)
        sequence.clock.plan = time.monotonic() - planning
        self._held[prepared.request.id] = sequence
        return sequence

    def _forward(self, work: Many[tuple[Sequence, int]]) -> Tensor:
        """Logits of those whose prompt is complete behind this step: B x vocabulary."""
        with undone_without_memory([sequence.kv for sequence, _ in work]):
            segments = [self._segment(sequence, num_rows) for sequence, num_rows in work]
            tails = [int(sequence.completes(num_rows)) for sequence, num_rows in work]
            return self._adapter.logits(self._loop.forward(segments, tails=tails))

    def _segment(self, sequence: Sequence, num_rows: int) -> Segment:
        if sequence.prefilled:
            return sequence.decode_segment(self._adapter)
        segment = sequence.prompt_segment(self._adapter, num_rows)
        if sequence.awaits_selection:
            segment.probes = sequence.probes(self._adapter.geometry)
            segment.choose = self._planner.chooser(sequence)
        elif sequence.plan.last_selection_layer:
            segment.choose = as_planned(sequence.plan, sequence.weights)
        return segment

    def _advance_all(
        self, work: Many[tuple[Sequence, int]], logits_BN: Tensor, took: float
    ) -> list[Outcome]:
        outcomes, next_logits = [], iter(logits_BN)
        for sequence, num_rows in work:
            completes = sequence.completes(num_rows)
            if sequence.prefilled:
                sequence.clock.decode += took
            else:
                sequence.clock.prefill += took
                sequence.computed(num_rows)
                if completes:
                    sequence.clock.enters(Stage.DECODE, time.monotonic())
            if completes:
                outcomes.append(self._advance(sequence, next(next_logits)))
        return outcomes

    def _advance(self, sequence: Sequence, logits_N: Tensor) -> Outcome:
        token_id = sequence.sampler.next_id(logits_N)
        sequence.token_ids.append(token_id)
        ended = token_id in self._adapter.eos_token_ids
        chunk = sequence.say("" if ended else sequence.push(token_id, logits_N))
        reason = self._end_of(sequence, ended=ended)
        if reason is None:
            return Outcome(request_id=sequence.request.id, chunk=chunk)
        last = sequence.say_rest(chunk)
        return Outcome(
            request_id=sequence.request.id, chunk=last, result=self._finish(sequence, reason)
        )

    def _scores(self, request: ChatRequest) -> Scores | None:
        num_top = request.sampling.top_logprobs
        return None if num_top is None else Scores(num_top, self._adapter.token_bytes)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> ChatResult:
        """The memory is given back once the whole step is through."""
        sequence.say_rest()
        result = sequence.result(self._adapter.geometry, reason, now=time.monotonic())
        sequence.kv.release(compact=False)
        self._held.pop(sequence.request.id, None)
        return result

    def _end_of(self, sequence: Sequence, *, ended: bool) -> FinishReason | None:
        if ended or sequence.text.stopped:
            return FinishReason.STOP
        if sequence.num_generated >= sequence.request.sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def _finish_plan(self, sequence: Sequence) -> Outcome:
        if sequence.awaits_selection:
            started = time.monotonic()
            sequence.clock.enters(Stage.PREFILL, started)
            with undone_without_memory([sequence.kv]):
                segment = self._segment(sequence, ALL_ROWS)
                self._loop.forward([segment], until=sequence.plan.last_selection_layer)
            sequence.clock.prefill = time.monotonic() - started
        return Outcome(
            request_id=sequence.request.id, result=self._finish(sequence, FinishReason.STOP)
        )

    def _describe(self, router: LoadedRouter | None) -> Capabilities:
        adapter = self._adapter
        return Capabilities(
            model=adapter.name,
            family=adapter.family,
            fingerprint=adapter.fingerprint,
            geometry=adapter.geometry,
            device=adapter.device,
            dtype=adapter.dtype,
            visual_tokens=adapter.fixed_visual,
            max_images=self._max_images,
            router=router.identity if router else None,
            default_strategy=self._planner.default_strategy(),
            strategies=self._planner.strategies(),
            smallest_budget=self._planner.smallest_budget(),
        )
