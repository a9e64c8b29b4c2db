"""The runner: the one owner of the device. Encodes, plans, and steps packed batches.

Satisfies `engine.protocols.Runner`. All but `capabilities` and `prepare` run on the engine's
thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from allrounder.core import Capabilities, ChatRequest, ChatResult, FinishReason, Stage
from allrounder.engine.execution.batch import Segment, as_planned
from allrounder.engine.execution.decoder import DecoderLoop
from allrounder.engine.execution.kv_cache import encoding_error, undone_without_memory
from allrounder.engine.execution.sampling import AnswerText, Sampler, Scores
from allrounder.engine.execution.sequence import DeviceSequence
from allrounder.engine.planning.planner import DEFAULT_USE, CalibrationUse, Planner, request_seed
from allrounder.engine.planning.prepared import PreparedRequest
from allrounder.engine.protocols import ALL_ROWS, CacheCounts, Outcome
from allrounder.engine.scheduling.request import EngineRequest, ScheduledRows
from allrounder.engine.vision.encoder import Encoder
from allrounder.engine.vision.resizing import resized
from allrounder.errors import AllrounderError, InternalError, InvalidField
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import ImageFeatures
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
        self._held: dict[str, DeviceSequence] = {}
        self._kv_bytes_held = 0
        self._capabilities = self._describe(router)

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def prepare(self, request: ChatRequest) -> PreparedRequest:
        if len(request.images) > self._max_images:
            raise InvalidField(
                f"at most {self._max_images} images, got {len(request.images)}", param="images"
            )
        layouts = tuple(self._adapter.layout(image) for image in request.images)
        prompt = self._adapter.converse(request.conversation, layouts)
        strategy, allocation = self._planner.resolve(request, prompt.shape, layouts)
        prepared = PreparedRequest(
            request=request,
            geometry=self._adapter.geometry,
            prompt=prompt,
            shape=prompt.shape,
            layouts=layouts,
            strategy=strategy,
            allocation=allocation,
            seed=request_seed(request),
        )
        if strategy.token_part and strategy.token_part.resizes and allocation.plan.selections:
            prepared = resized(self._adapter, prepared)
        return prepared.fitted(kv_bytes_limit=self._kv_bytes_limit)

    def begin(self, batch: Sequence[EngineRequest]) -> list[AllrounderError | None]:
        started = time.monotonic()
        try:
            visuals = self._encoder.encode([_prepared(state) for state in batch])
        except Exception as err:
            if len(batch) > 1:
                return [error for state in batch for error in self.begin([state])]
            logger.exception("encoding failed")
            return [encoding_error(err)]
        encoded = time.monotonic() - started
        for state in batch:
            state.clock.enters(Stage.ENCODE, started)
            state.clock.encode = encoded
        return [
            self._begin_one(state, visual) for state, visual in zip(batch, visuals, strict=True)
        ]

    def step(self, work: Sequence[ScheduledRows]) -> list[Outcome]:
        sequences = [_sequence(each.request) for each in work]
        outcomes = [self._finish_plan(seq) for seq in sequences if seq.request.plan_only]
        generating = [each for each in work if not each.request.request.plan_only]
        if generating:
            started = time.monotonic()
            for each in generating:
                if each.request.num_pending:
                    each.request.clock.enters(Stage.PREFILL, started)
            logits_BN = self._forward(generating)
            outcomes += self._advance_all(generating, logits_BN, time.monotonic() - started)
        for sequence in sequences:
            sequence.kv.store.compact()
        self._count_held()
        return outcomes

    def preempt(self, request: EngineRequest) -> None:
        _sequence(request).restart()
        self._count_held()

    def finish(self, request: EngineRequest, reason: FinishReason) -> ChatResult:
        sequence = _sequence(request)
        result = self._finish(sequence, reason)
        sequence.kv.store.compact()
        self._count_held()
        return result

    def release(self, request: EngineRequest) -> None:
        if request.sequence is not None:
            _sequence(request).kv.release()
        self._held.pop(request.id, None)
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

    def _begin_one(self, state: EngineRequest, visual: ImageFeatures) -> AllrounderError | None:
        planning = time.monotonic()
        prepared, sampling = _prepared(state), state.request.sampling
        try:
            with torch.inference_mode():
                plan, weights = self._planner.choose_first(prepared, visual)
                positions = self._adapter.positions(prepared.prompt, prepared.layouts)
        except AllrounderError as err:
            return err
        except Exception:
            logger.exception("planning failed")
            return InternalError("the plan could not be made")
        state.sequence = self._held[state.id] = DeviceSequence(
            state=state,
            prepared=prepared,
            plan=plan,
            visual=visual,
            weights=weights,
            sampler=Sampler(sampling),
            text=AnswerText(self._adapter.text_stream(), sampling.stop),
            positions=positions,
            scores=self._scores(state.request),
        )
        state.num_rows = prepared.shape.num_text + plan.visual_rows(0)
        state.clock.enters(Stage.PLAN, planning)
        state.clock.plan = time.monotonic() - planning
        return None

    def _forward(self, work: Sequence[ScheduledRows]) -> Tensor:
        """Logits of those whose prompt is complete behind this step: B x vocabulary."""
        sequences = [_sequence(each.request) for each in work]
        with undone_without_memory([sequence.kv for sequence in sequences]):
            segments = [
                self._segment(sequence, each.num_rows)
                for sequence, each in zip(sequences, work, strict=True)
            ]
            tails = [int(each.request.completes(each.num_rows)) for each in work]
            return self._adapter.logits(self._loop.forward(segments, tails=tails))

    def _segment(self, sequence: DeviceSequence, num_rows: int) -> Segment:
        if not sequence.state.num_pending:
            return sequence.decode_segment(self._adapter)
        segment = sequence.prompt_segment(self._adapter, num_rows)
        if sequence.awaits_selection:
            segment.probes = sequence.probes(self._adapter.geometry)
            segment.choose = self._planner.chooser(sequence)
        elif sequence.plan.last_selection_layer:
            segment.choose = as_planned(sequence.plan, sequence.weights)
        return segment

    def _advance_all(
        self, work: Sequence[ScheduledRows], logits_BN: Tensor, took: float
    ) -> list[Outcome]:
        outcomes, next_logits = [], iter(logits_BN)
        for each in work:
            state, clock = each.request, each.request.clock
            completes = state.completes(each.num_rows)
            if state.num_pending:
                clock.prefill += took
                _sequence(state).computed(each.num_rows)
                if completes:
                    clock.enters(Stage.DECODE, time.monotonic())
            else:
                clock.decode += took
            if completes:
                outcomes.append(self._advance(_sequence(state), next(next_logits)))
        return outcomes

    def _advance(self, sequence: DeviceSequence, logits_N: Tensor) -> Outcome:
        token_id = sequence.sampler.next_id(logits_N)
        sequence.token_ids.append(token_id)
        ended = token_id in self._adapter.eos_token_ids
        chunk = sequence.emit("" if ended else sequence.push(token_id, logits_N))
        reason = self._end_of(sequence, ended=ended)
        if reason is None:
            return Outcome(request=sequence.state, chunk=chunk)
        last = sequence.emit_rest(chunk)
        return Outcome(request=sequence.state, chunk=last, result=self._finish(sequence, reason))

    def _scores(self, request: ChatRequest) -> Scores | None:
        num_top = request.sampling.top_logprobs
        return None if num_top is None else Scores(num_top, self._adapter.token_bytes)

    def _finish(self, sequence: DeviceSequence, reason: FinishReason) -> ChatResult:
        """The memory is given back once the whole step is through."""
        sequence.emit_rest()
        result = sequence.result(reason, now=time.monotonic())
        sequence.kv.release(compact=False)
        self._held.pop(sequence.request.id, None)
        return result

    def _end_of(self, sequence: DeviceSequence, *, ended: bool) -> FinishReason | None:
        if ended or sequence.text.stopped:
            return FinishReason.STOP
        if sequence.state.num_generated >= sequence.request.sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def _finish_plan(self, sequence: DeviceSequence) -> Outcome:
        if sequence.awaits_selection:
            started = time.monotonic()
            sequence.state.clock.enters(Stage.PREFILL, started)
            with undone_without_memory([sequence.kv]):
                segment = self._segment(sequence, ALL_ROWS)
                self._loop.forward([segment], until=sequence.plan.last_selection_layer)
            sequence.state.clock.prefill = time.monotonic() - started
        return Outcome(request=sequence.state, result=self._finish(sequence, FinishReason.STOP))

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


def _prepared(state: EngineRequest) -> PreparedRequest:
    assert isinstance(state.prepared, PreparedRequest), "prepared by this runner"
    return state.prepared


def _sequence(state: EngineRequest) -> DeviceSequence:
    assert isinstance(state.sequence, DeviceSequence), "only what has begun is on the device"
    return state.sequence
