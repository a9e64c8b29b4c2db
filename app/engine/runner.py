"""The runner: the one owner of the device. Encodes, plans, and steps packed batches.

Satisfies `app.engine.base.Runner`. All but `capabilities` and `prepare` run on the engine's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Many
from functools import partial
from typing import cast

import torch
from torch import Tensor

from app.core import Capabilities, ChatRequest, ChatResult, FinishReason, TokenChunk
from app.engine.base import Outcome, Prepared, Running
from app.engine.planner import Planner, request_seed
from app.engine.ragged import DecoderLoop, Segment
from app.engine.sampling import Sampler
from app.engine.sequence import PreparedPrompt, Sequence, prompt_segment
from app.engine.text import AnswerText
from app.errors import (
    AllrounderError,
    ContextLengthExceeded,
    EngineOutOfMemory,
    InternalError,
    InvalidField,
)
from app.models.base import Adapter
from app.models.families.base import VisualTokens
from app.models.loading import load_adapter
from app.router.store import LoadedRouter, load_router
from app.settings import Settings

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
    ) -> None:
        self._adapter = adapter
        self._planner = Planner(adapter, router)
        self._loop = DecoderLoop(adapter)
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
        prompt = self._adapter.prompt(request.question, layouts)
        self._check_length(request, len(prompt.token_ids))
        strategy, allocation = self._planner.resolve(request, prompt.shape)
        prepared = PreparedPrompt(
            request=request,
            prompt=prompt,
            shape=prompt.shape,
            layouts=layouts,
            strategy=strategy,
            allocation=allocation,
            seed=request_seed(request),
        )
        if self.kv_bytes_bound(prepared) > self._kv_bytes_limit:
            raise EngineOutOfMemory("the request's keys and values do not fit even alone")
        return prepared

    def kv_bytes_bound(self, prepared: Prepared) -> int:
        assert isinstance(prepared, PreparedPrompt)
        return prepared.kv_bytes_bound(self._adapter.geometry)

    def begin(self, batch: Many[Prepared]) -> list[Running | AllrounderError]:
        started = time.monotonic()
        prompts = [cast(PreparedPrompt, prepared) for prepared in batch]
        try:
            visuals = self._encode(prompts)
        except Exception:
            if len(prompts) > 1:
                return [entry for prepared in prompts for entry in self.begin([prepared])]
            logger.exception("encoding failed")
            return [InternalError("the image could not be encoded")]
        encoded = time.monotonic() - started
        entries: list[Running | AllrounderError] = []
        for prepared, visual in zip(prompts, visuals, strict=True):
            entries.append(self._begin_one(prepared, visual, started, encoded))
        return entries

    def step(self, running: Many[Running]) -> list[Outcome]:
        sequences = [cast(Sequence, entry) for entry in running]
        planned = [seq for seq in sequences if seq.request.plan_only]
        outcomes = [self._finish_plan(sequence) for sequence in planned]
        generating = [seq for seq in sequences if not seq.request.plan_only]
        if not generating:
            return outcomes
        started = time.monotonic()
        first = [not sequence.prefilled for sequence in generating]
        hidden_BD = self._loop.forward([self._segment(sequence) for sequence in generating])
        logits_BN = self._adapter.logits(hidden_BD)
        took = time.monotonic() - started
        for sequence, was_first, logits_N in zip(generating, first, logits_BN, strict=True):
            if was_first:
                sequence.clock.prefill = took
            else:
                sequence.clock.decode += took
            sequence.prefilled = True
            outcomes.append(self._advance(sequence, logits_N))
        self._count_held()
        return outcomes

    def finish(self, running: Running, reason: FinishReason) -> ChatResult:
        assert isinstance(running, Sequence)
        running.text.flush()
        result = running.result(self._adapter.geometry, reason, now=time.monotonic())
        self.release(running)
        return result

    def release(self, running: Running) -> None:
        assert isinstance(running, Sequence)
        running.kv.release()
        self._held.pop(running.request.id, None)
        self._count_held()

    def kv_bytes_held(self) -> int:
        return self._kv_bytes_held

    def kv_bytes_limit(self) -> int:
        return self._kv_bytes_limit

    def _count_held(self) -> None:
        """On the engine's thread, so that other threads read one number and nothing that moves."""
        self._kv_bytes_held = sum(seq.kv.bytes_held for seq in self._held.values())

    def _check_length(self, request: ChatRequest, num_rows: int) -> None:
        limit = self._adapter.geometry.max_positions
        if num_rows + request.sampling.max_tokens > limit:
            raise ContextLengthExceeded(
                f"the prompt has {num_rows} tokens and max_tokens is {request.sampling.max_tokens};"
                f" together they may be {limit}",
                param="question" if num_rows >= limit else "max_tokens",
            )

    def _encode(self, prompts: Many[PreparedPrompt]) -> list[VisualTokens]:
        features = iter(
            self._adapter.encode([img for prepared in prompts for img in prepared.request.images])
        )
        return [
            VisualTokens.joined([next(features) for _ in prepared.request.images])
            for prepared in prompts
        ]

    def _begin_one(
        self, prepared: PreparedPrompt, visual: VisualTokens, started: float, encoded: float
    ) -> Running | AllrounderError:
        planning = time.monotonic()
        try:
            with torch.inference_mode():
                plan = self._planner.choose_first(prepared, visual.tokens_VD)
        except AllrounderError as err:
            return err
        except Exception:
            logger.exception("planning failed")
            return InternalError("the plan could not be made")
        sequence = Sequence(
            prepared=prepared,
            plan=plan,
            visual=visual,
            sampler=Sampler(prepared.request.sampling),
            text=AnswerText(self._adapter.text_stream(), prepared.request.sampling.stop),
        )
        sequence.clock.queue = max(started - prepared.request.arrival, 0.0)
        sequence.clock.encode = encoded
        sequence.clock.plan = time.monotonic() - planning
        self._held[prepared.request.id] = sequence
        return sequence

    def _segment(self, sequence: Sequence) -> Segment:
        if sequence.prefilled:
            return sequence.decode_segment(self._adapter)
        open_selection = sequence.awaits_selection
        segment = prompt_segment(
            sequence,
            self._adapter,
            probes=sequence.prepared.strategy.probes() if open_selection else (),
        )
        if open_selection:
            segment.choose = partial(self._planner.choose_at, sequence)
        return segment

    def _advance(self, sequence: Sequence, logits_N: Tensor) -> Outcome:
        token_id = sequence.sampler.next_id(logits_N)
        sequence.token_ids.append(token_id)
        ended = token_id in self._adapter.eos_token_ids
        text = "" if ended else sequence.text.push(token_id)
        reason = self._end_of(sequence, ended=ended)
        if reason is None:
            return Outcome(request_id=sequence.request.id, chunk=TokenChunk(text=text))
        text += sequence.text.flush()
        return Outcome(
            request_id=sequence.request.id,
            chunk=TokenChunk(text=text),
            result=self.finish(sequence, reason),
        )

    def _end_of(self, sequence: Sequence, *, ended: bool) -> FinishReason | None:
        if ended or sequence.text.stopped:
            return FinishReason.STOP
        if sequence.num_generated >= sequence.request.sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def _finish_plan(self, sequence: Sequence) -> Outcome:
        if sequence.awaits_selection:
            started = time.monotonic()
            self._loop.forward([self._segment(sequence)], until=sequence.plan.last_selection_layer)
            sequence.clock.prefill = time.monotonic() - started
        return Outcome(
            request_id=sequence.request.id, result=self.finish(sequence, FinishReason.STOP)
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


def load_runner(settings: Settings) -> ModelRunner:
    """The model and its router as the settings name them. Raises StartupError."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    adapter = load_adapter(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        allow_hub=settings.allow_hub,
    )
    folder = settings.router_dir / adapter.name
    router = None
    if folder.is_dir():
        router = load_router(
            folder,
            fingerprint=adapter.fingerprint,
            geometry=adapter.geometry,
            device=adapter.device,
        )
    return ModelRunner(adapter, router, kv_bytes_limit=settings.kv_bytes_limit)
