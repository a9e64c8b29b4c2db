"""Requests for the scheduler alone: no model behind them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from allrounder.core import BudgetRequest, ChatRequest, Priority, PromptShape, SamplingParams
from allrounder.core.budget import FlopsShare
from allrounder.engine.scheduling.request import Demand, EngineRequest, ScheduledRows


@dataclass(frozen=True, kw_only=True)
class Stub:
    """Satisfies `Prepared`."""

    request: ChatRequest
    demand: Demand

    @property
    def shape(self) -> PromptShape:
        return PromptShape(num_text=self.demand.num_rows, visual_per_image=())


def queued(
    name: str,
    *,
    priority: Priority = Priority.INTERACTIVE,
    rows: int = 10,
    kv: int = 0,
    per_token: int = 0,
    encoded: int = 0,
    tokens: int = 8,
    splittable: bool = True,
    signature: Hashable = None,
    at: float | None = None,
) -> EngineRequest:
    """A request that needs so much; `at` is its deadline in monotonic seconds."""
    request = ChatRequest(
        id=name,
        images=(),
        question="?",
        budget=BudgetRequest(form=FlopsShare(share=1), requested=1),
        sampling=SamplingParams(max_tokens=tokens),
        priority=priority,
        deadline=at,
    )
    demand = Demand(
        num_rows=rows,
        num_encoded=encoded,
        splittable=splittable,
        kv_prompt_bytes=kv,
        kv_token_bytes=per_token,
        layer_signature=signature,
    )
    return EngineRequest(prepared=Stub(request=request, demand=demand))


def compute(step: Iterable[ScheduledRows]) -> None:
    """Book in the requests what a runner would have computed."""
    for each in step:
        completes = each.request.completes(each.num_rows)
        each.request.computed(each.num_rows)
        if completes:
            each.request.token_ids.append(0)
