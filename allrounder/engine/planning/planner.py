"""Budget to plan for one request: resolves, scores, chooses, and proves the cost.

The only place where adapters, strategies and the router meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from torch import Tensor

from allrounder.core import (
    BudgetRequest,
    ChatRequest,
    ImageLayout,
    Plan,
    PromptShape,
    StrategyInfo,
)
from allrounder.cost import cost_of, kv_bytes
from allrounder.engine.execution.batch import Choose, Segment, as_planned
from allrounder.engine.execution.sequence import DeviceSequence
from allrounder.engine.planning.prepared import PreparedRequest
from allrounder.errors import RouterMismatch
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import ImageFeatures
from allrounder.pruning import known_strategies, make_strategy
from allrounder.pruning.allocate import (
    DEFAULT_MARGIN,
    Allocation,
    Allocator,
    CalibratedFrontier,
    CalibratedLoyalty,
    Frontier,
    PublishedFrontier,
    rescheduled,
    settle,
    trimmed,
)
from allrounder.pruning.strategy import (
    Arrival,
    Choice,
    Context,
    Points,
    RouterScores,
    Strategy,
    View,
    needs_router,
)
from allrounder.pruning.vision_facts import VisionFeatures
from allrounder.router.weights import LoadedRouter

_TRAINING_FREE = "fastv"
_TYPICAL_TEXT_ROWS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationUse:
    """How a router's calibration is read.

    Attributes:
        quality_margin: standard errors that a promised loyalty lies under the measured one.
        split_by: what a share of FLOPs is split by: least mean KL, or most loyalty.
    """

    quality_margin: float = DEFAULT_MARGIN
    split_by: Literal["kl", "loyalty"] = "kl"


DEFAULT_USE = CalibrationUse()


class Planner:
    """Makes plans for one adapter and, if there is one, its router."""

    def __init__(
        self,
        adapter: Adapter,
        router: LoadedRouter | None,
        use: CalibrationUse = DEFAULT_USE,
    ) -> None:
        self._adapter = adapter
        self._router = router
        self._context = Context(
            geometry=adapter.geometry,
            router_candidates=router.candidates if router else None,
            block_influence=router.block_influence if router else None,
            position_axes=adapter.position_axes,
            fixed_visual=adapter.fixed_visual,
        )
        self._calibrated = _frontier(router, use)
        self._loyalty = _loyalty(router, use)

    def resolve(
        self, request: ChatRequest, shape: PromptShape, layouts: Sequence[ImageLayout]
    ) -> tuple[Strategy, Allocation]:
        """The strategy and the bound that the budget allows. Raises typed 422s."""
        budget = request.budget
        strategy = make_strategy(budget.strategy or self.default_strategy(budget), budget.options)
        strategy.check(self._context)
        look = self._adapter.look_flops(layouts)
        allocator = self._allocator(strategy, shape, budget.min_tokens, look_flops=look)
        return strategy, allocator.allocate(budget)

    def default_strategy(self, budget: BudgetRequest | None = None) -> str:
        if self._router is not None:
            return "par"
        asks_layers = budget is not None and getattr(budget.form, "layers", None) is not None
        calibrated = self._context.block_influence is not None
        return f"{_TRAINING_FREE}+shortgpt" if asks_layers and calibrated else _TRAINING_FREE

    def choose_first(
        self, prepared: PreparedRequest, visual: ImageFeatures
    ) -> tuple[Plan, dict[int, Tensor]]:
        """All that can be chosen before prefill, layers and tokens dropped at layer 0.

        Returns:
            The plan, and merging weights by layer.
        """
        bound, strategy = prepared.allocation.plan, prepared.strategy
        if bound.is_dense:
            return bound, {}
        view = self._view(prepared, visual)
        skipped: tuple[int, ...] = ()
        if prepared.allocation.num_skipped:
            assert strategy.layer_part is not None, "only a layer strategy skips layers"
            allowed = prepared.allocation.allowed
            skipped = strategy.layer_part.skip(view, allowed, prepared.allocation.num_skipped)
        plan = settle(bound, skipped=skipped)
        if needs_router(strategy) and self._router is not None:
            plan = replace(plan, router=self._router.identity)
        weights: dict[int, Tensor] = {}
        if plan.selection_at(0) is not None:
            plan, choice = self._chosen(prepared, plan, view)
            if choice.weights is not None:
                weights[0] = choice.weights
        self._prove(prepared, plan)
        return plan, weights

    def chooser(self, sequence: DeviceSequence) -> Choose:
        """Fills in the selections of an in-decoder strategy from what it sees at its layers."""
        prepared = sequence.prepared
        seen = self._view(prepared, sequence.visual, with_router=False)

        def choose(segment: Segment, arrival: Arrival) -> Choice:
            selection = sequence.plan.selection_at(arrival.layer_idx)
            assert selection is not None
            if selection.kept is not None:
                return as_planned(sequence.plan, sequence.weights)(segment, arrival)
            view = replace(seen, arrival=arrival, attention=segment.attention)
            plan, choice = self._chosen(prepared, sequence.plan, view)
            if plan.is_chosen:
                self._prove(prepared, plan)
            sequence.adopt(plan, arrival.layer_idx, choice)
            segment.plan = plan
            return choice

        return choose

    def _chosen(self, prepared: PreparedRequest, plan: Plan, view: View) -> tuple[Plan, Choice]:
        """The selection at the point of `view`, after what looking there changes of the counts."""
        tokens = prepared.strategy.token_part
        assert tokens is not None, "only a token strategy has selections"
        layer_idx = view.layer_idx
        if tokens.adapts:
            remaining = tuple(point for point in plan.points if point[0] >= layer_idx)
            wanted = tokens.reschedule(view, prepared.allocation.count, remaining)
            if wanted != remaining:
                plan = self._within_bound(prepared, plan, wanted)
        selection = plan.selection_at(layer_idx)
        assert selection is not None
        choice = tokens.choose(view, selection.count)
        return plan.with_kept(layer_idx, tuple(choice.rows.tolist())), choice

    def _within_bound(self, prepared: PreparedRequest, plan: Plan, wanted: Points) -> Plan:
        """`plan` with the counts `wanted`, or as few less as cost and KV of the bound ask for."""
        tokens, shape = prepared.strategy.token_part, prepared.shape
        assert tokens is not None
        geometry, allocation = self._adapter.geometry, prepared.allocation
        room = kv_bytes(geometry, shape, allocation.plan, num_generated=1)
        for points in chain([wanted], trimmed(wanted)):
            changed = rescheduled(plan, tokens, geometry, shape, points)
            fits = kv_bytes(geometry, shape, changed, num_generated=1) <= room
            if fits and cost_of(geometry, shape, changed).prefill_ratio <= allocation.limit:
                return changed
        return plan

    def strategies(self) -> tuple[StrategyInfo, ...]:
        """Those this model can serve, with their knobs' defaults."""
        infos = []
        for name, kind in known_strategies().items():
            if kind.needs_router and self._router is None:
                continue
            if name == "shortgpt" and self._context.block_influence is None:
                continue
            if kind.resizes and self._context.fixed_visual is not None:
                continue
            infos.append(
                StrategyInfo(
                    name=name,
                    prunes_tokens=kind.prunes_tokens,
                    prunes_layers=kind.prunes_layers,
                    options=kind().knobs(),
                )
            )
        return tuple(infos)

    def smallest_budget(self) -> float:
        """What the default strategy's smallest plan costs on a short question about one image."""
        shape = PromptShape(
            num_text=_TYPICAL_TEXT_ROWS,
            visual_per_image=(self._adapter.fixed_visual or 576,),
            num_question=_TYPICAL_TEXT_ROWS,
        )
        strategy = make_strategy(self.default_strategy())
        return self._allocator(strategy, shape, 1).smallest_share()

    def _allocator(
        self, strategy: Strategy, shape: PromptShape, min_tokens: int, *, look_flops: int = 0
    ) -> Allocator:
        router = self._router
        calibrated = needs_router(strategy)
        return Allocator(
            context=self._context,
            strategy=strategy,
            shape=shape,
            frontier=self._calibrated if calibrated else PublishedFrontier(),
            router_flops=router.flops if router else lambda _: 0,
            loyalty=self._loyalty,
            min_tokens=min_tokens,
            look_flops=look_flops,
        )

    def _view(
        self,
        prepared: PreparedRequest,
        visual: ImageFeatures,
        *,
        with_router: bool = True,
    ) -> View:
        question_QD = self._adapter.embed(prepared.prompt.read_ids)
        scores: RouterScores | None = None
        if with_router and self._router is not None and needs_router(prepared.strategy):
            token_logits, layer_logits = self._router.score(visual.tokens_VD, question_QD)
            scores = RouterScores(token_logits=token_logits, layer_logits=layer_logits)
        view = View(
            context=self._context,
            visual_VD=visual.tokens_VD,
            question_QD=question_QD,
            seed=prepared.seed,
            router=scores,
        )
        return with_images(view, visual, prepared.layouts)

    def _prove(self, prepared: PreparedRequest, plan: Plan) -> None:
        cost = prepared.cost(plan)
        limit = prepared.allocation.limit
        assert cost.prefill_ratio <= limit, f"plan costs {cost.prefill_ratio}, limit {limit}"
        assert prepared.request.budget.form.allows(cost) or plan.is_dense, "budget exceeded"


def request_seed(request: ChatRequest) -> int:
    """The same for the same images, question and seed, wherever and beside whomever it runs."""
    digest = hashlib.sha256(request.question.encode())
    for message in request.messages:
        digest.update(repr((message.role.value, message.parts)).encode())
    for image in request.images:
        digest.update(image.digest.encode())
    digest.update(str(request.sampling.seed).encode())
    return int.from_bytes(digest.digest()[:7], "big")


def _frontier(router: LoadedRouter | None, use: CalibrationUse) -> Frontier:
    calibration = router.manifest.calibration if router else None
    if calibration is None:
        return PublishedFrontier()
    harm = calibration.kl_nats
    if use.split_by == "loyalty":
        if calibration.loyalty is None:
            raise RouterMismatch(
                "the router was calibrated without loyalty, so budgets cannot be split by it"
            )
        harm = tuple(tuple(1 - share for share in row) for row in calibration.loyalty.mean)
    return CalibratedFrontier(
        skip_ratios=calibration.skip_ratios, token_ratios=calibration.token_ratios, harm=harm
    )


def _loyalty(router: LoadedRouter | None, use: CalibrationUse) -> CalibratedLoyalty | None:
    calibration = router.manifest.calibration if router else None
    if calibration is None or calibration.loyalty is None:
        return None
    return CalibratedLoyalty.under(
        skip_ratios=calibration.skip_ratios,
        token_ratios=calibration.token_ratios,
        mean=calibration.loyalty.mean,
        standard_error=calibration.loyalty.standard_error,
        margin=use.quality_margin,
    )


def with_images(view: View, visual: ImageFeatures, layouts: Sequence[ImageLayout]) -> View:
    """`view` with the images' sizes and grids and, where they were encoded with facts, those."""
    facts, vision = visual.facts, None
    tower = view.context.geometry.vision
    has_class = tower is not None and tower.has_class
    if facts is not None:
        vision = VisionFeatures(
            attention_HV=facts.attention_HV,
            keys_VE=facts.keys_VE,
            features_VF=facts.features_VF,
        )
    return replace(
        view,
        visual_per_image=tuple(layout.num_visual for layout in layouts),
        grids=tuple(layout.grid for layout in layouts),
        vision=vision,
        cls_attention_V=vision.attention_HV.mean(0) if vision and has_class else None,
    )
