"""A loaded vision-language model as a Python object: ask, stream, or only plan."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from allrounder.answer import Answer, PlanUsage, Pruning, answer_of, plan_usage_of, pruning_of
from allrounder.budget import parse_budget
from allrounder.core import (
    Budget,
    BudgetRequest,
    Capabilities,
    ChatRequest,
    ChatResult,
    Plan,
    SamplingParams,
    TokenChunk,
)
from allrounder.engine.offline import outcomes
from allrounder.engine.startup import load_runner
from allrounder.errors import InvalidField
from allrounder.images import ImageLike, read_image
from allrounder.settings import EngineSettings

Images = ImageLike | Sequence[ImageLike]
BudgetLike = float | Mapping[str, Any] | Budget
"""A share of dense prefill FLOPs, an object form as in HTTP requests, or a budget dataclass."""

_FORMS = tuple(Budget.__args__)
MAX_TEMPERATURE = 2


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """What `VLM.plan` returns: what would be computed, and what of it is the pruning's doing."""

    plan: Plan
    usage: PlanUsage
    pruning: Pruning


class VLM:
    """One frozen model with its router, on one device.

    Calls from several threads are answered step by step in turn; for many callers at once, run the
    service, which batches them.

    Args:
        model: `demo`, the folder of a transformers model, or `random:<shape>`.
        router_dir: folder with one subfolder of router weights per model name; default: where the
            shipped ones lie.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        threads: CPU threads; default: torch's own.

    Raises:
        StartupError: there is no such model, its family is not supported, or its router does not
            fit it.
    """

    def __init__(
        self,
        model: str | Path = "demo",
        *,
        router_dir: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
    ) -> None:
        given = {"router_dir": router_dir, "threads": threads}
        chosen = {name: value for name, value in given.items() if value is not None}
        settings = EngineSettings.model_validate(
            {"model": str(model), "device": device, "dtype": dtype, **chosen}
        )
        self._runner = load_runner(settings)
        self._lock = threading.RLock()

    @property
    def capabilities(self) -> Capabilities:
        """Geometry, device, router, strategies with their options, smallest budget."""
        return self._runner.capabilities()

    def generate(
        self,
        image: Images,
        question: str,
        budget: BudgetLike = 1,
        *,
        strategy: str | None = None,
        options: Mapping[str, Any] | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Answer:
        """Answer a question about one image, or several that stand before it.

        Args:
            budget: at 1 exactly the dense model's answer.
            strategy: by default `par` where there is a router, else the best training-free one.
            options: the strategy's own knobs.
            temperature: 0 is greedy; at most 2.

        Raises:
            ValueError: its subclass says what is wrong, and its `param` with which argument.
        """
        sampling = _sampling(max_tokens, temperature, top_p, seed, stop)
        request = _request(image, question, _budget(budget, strategy, options), sampling)
        stream = AnswerStream(self, request)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        image: Images,
        question: str,
        budget: BudgetLike = 1,
        *,
        strategy: str | None = None,
        options: Mapping[str, Any] | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> AnswerStream:
        """As `generate`, but the text as it becomes final; its `answer` once it is exhausted."""
        sampling = _sampling(max_tokens, temperature, top_p, seed, stop)
        request = _request(image, question, _budget(budget, strategy, options), sampling)
        return AnswerStream(self, request)

    def plan(
        self,
        image: Images,
        question: str,
        budget: BudgetLike = 1,
        *,
        strategy: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> PlannedRequest:
        """The plan that a request would get, without generating. Raises as `generate`."""
        asked = _request(image, question, _budget(budget, strategy, options), SamplingParams())
        request = replace(asked, plan_only=True)
        for event in self._events(request):
            if isinstance(event, ChatResult):
                return PlannedRequest(
                    plan=event.plan,
                    usage=plan_usage_of(event),
                    pruning=pruning_of(request, event),
                )
        raise AssertionError("a request ends with a result or an error")

    def _events(self, request: ChatRequest) -> Generator[TokenChunk | ChatResult]:
        """Text as it becomes final, then the result. The lock is held while a step is computed."""
        with self._lock:
            prepared = self._runner.prepare(request)
        steps = outcomes(self._runner, [prepared])
        try:
            while True:
                with self._lock:
                    outcome = next(steps, None)
                if outcome is None:
                    return
                if outcome.error is not None:
                    raise outcome.error
                if outcome.chunk is not None:
                    yield outcome.chunk
                if outcome.result is not None:
                    yield outcome.result
        finally:
            with self._lock:
                steps.close()


class AnswerStream(Iterator[str]):
    """The text of one answer in pieces. Ending early, by `close`, frees what the request holds."""

    def __init__(self, vlm: VLM, request: ChatRequest) -> None:
        self._request = request
        self._events = vlm._events(request)
        self._num_chars = 0
        self._result: ChatResult | None = None

    def __next__(self) -> str:
        for event in self._events:
            if isinstance(event, ChatResult):
                self._result = event
                # The last step hands out what was held back while a stop string might have come.
                rest = event.answer[self._num_chars :]
                if rest:
                    self._num_chars += len(rest)
                    return rest
            elif event.text:
                self._num_chars += len(event.text)
                return event.text
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises RuntimeError before the stream is exhausted."""
        if self._result is None:
            raise RuntimeError("the answer is not complete: exhaust the stream first")
        return answer_of(self._request, self._result)

    def close(self) -> None:
        self._events.close()


def _request(
    image: Images, question: str, budget: BudgetRequest, sampling: SamplingParams
) -> ChatRequest:
    if not isinstance(question, str) or not question.strip():
        raise InvalidField("question: must be a text that is not empty", param="question")
    if isinstance(image, Sequence) and not isinstance(image, str | bytes):
        given = list(image)
    else:
        given = [image]
    if not given:
        raise InvalidField("image: at least one image is required", param="image")
    return ChatRequest(
        id=uuid.uuid4().hex,
        images=tuple(read_image(each) for each in given),
        question=question,
        budget=budget,
        sampling=sampling,
        arrival=time.monotonic(),
        explain=True,
    )


def _budget(
    budget: BudgetLike, strategy: str | None, options: Mapping[str, Any] | None
) -> BudgetRequest:
    if isinstance(budget, _FORMS):
        made = BudgetRequest(form=budget, requested=budget)
    else:
        made = parse_budget(budget)
    return replace(
        made,
        strategy=strategy or made.strategy,
        options={**made.options, **(options or {})},
    )


def _sampling(
    max_tokens: int, temperature: float, top_p: float, seed: int | None, stop: Sequence[str]
) -> SamplingParams:
    if max_tokens < 1:
        raise InvalidField("max_tokens: must be at least 1", param="max_tokens")
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise InvalidField("temperature: must be from 0 to 2", param="temperature")
    if not 0 < top_p <= 1:
        raise InvalidField("top_p: must be greater than 0 and at most 1", param="top_p")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(stops):
        raise InvalidField("stop: an empty text cannot end an answer", param="stop")
    return SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stops
    )
