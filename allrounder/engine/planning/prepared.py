"""A request before the queue: its prompt is built and its budget resolved to a bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from allrounder.core import (
    ChatRequest,
    Cost,
    ImageLayout,
    ModelGeometry,
    Plan,
    Prompt,
    PromptShape,
    Selection,
)
from allrounder.cost import cost_of, kv_bytes_per_row
from allrounder.engine.execution.kv_cache import max_rows_held
from allrounder.engine.scheduling.request import Demand
from allrounder.errors import ContextLengthExceeded, EngineOutOfMemory
from allrounder.pruning.allocate import Allocation
from allrounder.pruning.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """Satisfies `Prepared`.

    Attributes:
        seed: of the strategy's random choices; stable across repeats.
        unscaled: the prompt's shape before its images were made smaller, if they were.
    """

    request: ChatRequest
    geometry: ModelGeometry
    prompt: Prompt
    shape: PromptShape
    layouts: tuple[ImageLayout, ...]
    strategy: Strategy
    allocation: Allocation
    seed: int
    unscaled: PromptShape | None = None

    def cost(self, plan: Plan, *, num_generated: int = 1) -> Cost:
        """Of `plan`, beside the dense model on the images as they came."""
        cost = cost_of(self.geometry, self.shape, plan, num_generated=num_generated)
        if self.unscaled is None:
            return cost
        dense = Plan.dense(num_layers=self.geometry.num_layers, num_visual=self.unscaled.num_visual)
        whole = cost_of(self.geometry, self.unscaled, dense, num_generated=num_generated)
        return replace(
            cost,
            dense_prefill=whole.dense_prefill,
            dense_decode=whole.dense_decode,
            dense_kv_bytes=whole.dense_kv_bytes,
        )

    def reported(self, plan: Plan) -> Plan:
        """`plan` as the caller sees it: of scaled images no token is one that was there."""
        if self.unscaled is None:
            return plan
        selection = Selection(layer_idx=0, count=plan.num_visual)
        return replace(plan, num_visual=self.unscaled.num_visual, selections=(selection,))

    @cached_property
    def demand(self) -> Demand:
        """What computing this request takes, by its bound."""
        plan, per_row = self.allocation.plan, kv_bytes_per_row(self.geometry)
        rows_run = (
            max_rows_held(self.shape.num_text + plan.visual_rows(idx))
            for idx, runs in enumerate(plan.runs)
            if runs
        )
        return Demand(
            num_rows=self.shape.num_text + plan.visual_rows(0),
            num_encoded=self.shape.num_visual,
            splittable=plan.last_selection_layer == 0,
            kv_prompt_bytes=sum(rows_run) * per_row,
            kv_token_bytes=plan.num_layers_run * per_row,
            layer_signature=plan.runs,
        )

    def fitted(self, *, kv_bytes_limit: int) -> PreparedRequest:
        """Itself; with a shorter answer where nobody asked for a length and there is less room.

        Raises:
            ContextLengthExceeded: prompt and answer are longer than the model's context.
            EngineOutOfMemory: their KV cache is larger than `kv_bytes_limit`.
        """
        sampling, limit = self.request.sampling, self.geometry.max_positions
        num_rows = len(self.prompt.token_ids)
        if sampling.is_open_ended:
            for most in (limit - num_rows, self.demand.most_tokens(kv_bytes_limit)):
                if 1 <= most < sampling.max_tokens:
                    sampling = replace(sampling, max_tokens=most)
        if num_rows + sampling.max_tokens > limit:
            raise ContextLengthExceeded(
                f"the prompt has {num_rows} tokens and max_tokens is {sampling.max_tokens};"
                f" together they may be {limit}",
                param="question" if num_rows >= limit else "max_tokens",
            )
        if self.demand.kv_bytes(sampling.max_tokens) > kv_bytes_limit:
            raise EngineOutOfMemory("the request's keys and values do not fit even alone")
        if sampling is self.request.sampling:
            return self
        return replace(self, request=replace(self.request, sampling=sampling))
