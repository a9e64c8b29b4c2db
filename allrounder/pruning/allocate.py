"""Budget -> how many tokens to keep and how many layers to skip, proved by `cost` before use.

Every allocation is a bound: a plan whose kept tokens and skipped layers are still open, costed as
if the cheapest candidate layers were skipped. Whatever the strategy then chooses costs no more.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from allrounder.core import (
    BudgetRequest,
    Cost,
    ModelGeometry,
    Plan,
    PromptShape,
    Selection,
)
from allrounder.core.budget import Counts, FlopsShare, Quality
from allrounder.cost import cost_of
from allrounder.errors import BudgetTooSmall
from allrounder.pruning.strategy import (
    Context,
    Points,
    Strategy,
    is_calibrated,
    label,
    looking_flops,
    needs_router,
    refuse,
)

DEFAULT_MARGIN = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedLoyalty:
    """Promised loyalty on a grid of (skip_ratio, token_ratio).

    Attributes:
        skip_ratios, token_ratios: ascending grid axes.
        promised: one row per skip ratio, one value per token ratio; more tokens never promise
            less, more skips never more.
    """

    skip_ratios: tuple[float, ...]
    token_ratios: tuple[float, ...]
    promised: tuple[tuple[float, ...], ...]

    @classmethod
    def under(
        cls,
        *,
        skip_ratios: tuple[float, ...],
        token_ratios: tuple[float, ...],
        mean: Sequence[Sequence[float]],
        standard_error: Sequence[Sequence[float]],
        margin: float = DEFAULT_MARGIN,
    ) -> CalibratedLoyalty:
        """Promise `margin` standard errors less than what was measured.

        The cheapest of many measured sizes is likelier than not one that luck favoured, so a
        promise of the mean would be broken more often than kept. What a size promises, every size
        with more tokens and fewer skips promises too.
        """
        lowered = [
            [max(0.0, share - margin * error) for share, error in zip(*rows, strict=True)]
            for rows in zip(mean, standard_error, strict=True)
        ]
        return cls(
            skip_ratios=skip_ratios, token_ratios=token_ratios, promised=_best_of_harsher(lowered)
        )

    def at(self, split: Split) -> float:
        """What the nearest measured size promises that is no milder; 0 where none was measured.

        Loyalty falls steeply with the first tokens dropped, so a line between two sizes would
        promise too much.
        """
        row = bisect_left(self.skip_ratios, split.skip_ratio)
        column = bisect_right(self.token_ratios, split.token_ratio) - 1
        if row == len(self.skip_ratios) or column < 0:
            return 0.0
        return self.promised[row][column]


def require_loyalty(
    loyalty: CalibratedLoyalty | None, strategy: Strategy, *, named: bool
) -> CalibratedLoyalty:
    """Raises InvalidField where nothing is known; `named`: the caller chose the strategy."""
    advice = "or give a share of FLOPs"
    if not is_calibrated(strategy):
        if named:
            raise refuse(
                "strategy",
                f"strategy {label(strategy)!r} has no calibration that a quality could be held "
                f"against; take par, par-token or par-layer, {advice}",
            )
        raise refuse(
            "quality",
            "this model has no router whose calibration a quality could be held against; train "
            f"one with allrounder train router, {advice}",
        )
    if loyalty is None:
        raise refuse(
            "quality",
            "this model's router was calibrated without loyalty; train it again with allrounder "
            f"train router, {advice}",
        )
    return loyalty


def _best_of_harsher(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Each cell's maximum over all cells with as many skips or more and as many tokens or fewer."""
    found: list[tuple[float, ...]] = []
    below: Sequence[float] = [0.0] * len(rows[0])
    for row in reversed(rows):
        best, values = 0.0, []
        for value, under in zip(row, below, strict=True):
            best = max(best, value, under)
            values.append(best)
        below = values
        found.append(tuple(values))
    return tuple(reversed(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A way to spend a budget: shares of visual tokens kept and of decoder layers skipped."""

    token_ratio: float
    skip_ratio: float


class Frontier(Protocol):
    def loss(self, split: Split, share: float) -> float:
        """Expected harm of `split` under a budget of `share`; only its order matters."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedFrontier:
    """The default: layer shares of PAR's Table 1 on LLaVA-1.5-7B, read off by FLOPs.

    272 tokens/30 of 32 layers at 66 %, 224/28 at 58 %, 176/24 at 47 %; nothing is skipped above
    75 %. The fewest layers skipped wins above a point, the nearest to the table below it.
    """

    POINTS = ((0.47, 8 / 32), (0.58, 4 / 32), (0.66, 2 / 32), (0.75, 0.0))

    def loss(self, split: Split, share: float) -> float:
        wanted = next((skip for limit, skip in self.POINTS if share <= limit), 0.0)
        return abs(split.skip_ratio - wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedFrontier:
    """Measured harm on a grid of (skip_ratio, token_ratio), interpolated.

    Attributes:
        skip_ratios, token_ratios: ascending grid axes.
        harm: one row per skip ratio, one value per token ratio: mean KL to the dense answer in
            nats, or the share of answers that differ from it.
    """

    skip_ratios: tuple[float, ...]
    token_ratios: tuple[float, ...]
    harm: tuple[tuple[float, ...], ...]

    def loss(self, split: Split, share: float) -> float:
        rows = [_interpolate(self.token_ratios, row, split.token_ratio) for row in self.harm]
        return _interpolate(self.skip_ratios, rows, split.skip_ratio)


def _interpolate(axis: Sequence[float], values: Sequence[float], at: float) -> float:
    if at <= axis[0]:
        return values[0]
    if at >= axis[-1]:
        return values[-1]
    right = bisect_left(axis, at)
    weight = (at - axis[right - 1]) / (axis[right] - axis[right - 1])
    return values[right - 1] * (1 - weight) + values[right] * weight


RouterFlops = Callable[[PromptShape], int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """A bound plan: `plan.selections` without kept rows, and which layers may be skipped.

    Attributes:
        limit: the share of dense prefill FLOPs that the final plan may spend.
        count: visual tokens that the strategy was asked to keep.
        allowed: layers the strategy may choose among; it skips `num_skipped` of them.
    """

    plan: Plan
    limit: float
    count: int
    allowed: tuple[int, ...]
    num_skipped: int


class Allocator:
    """Splits budgets for one prompt shape and one strategy; pure arithmetic."""

    def __init__(
        self,
        *,
        context: Context,
        strategy: Strategy,
        shape: PromptShape,
        frontier: Frontier,
        router_flops: RouterFlops,
        loyalty: CalibratedLoyalty | None = None,
        min_tokens: int = 1,
        look_flops: int = 0,
    ) -> None:
        self._geometry: ModelGeometry = context.geometry
        self._strategy = strategy
        self._shape = shape
        self._frontier = frontier
        self._loyalty = loyalty
        self._floor = min(max(1, min_tokens), shape.num_visual)
        self._num_layers = context.geometry.num_layers
        self._tokens = strategy.token_part
        self._allowed = self._layers_on_offer(context)
        self._router_flops = router_flops(shape) if needs_router(strategy) else 0
        self._look_flops = look_flops if self._tokens and self._tokens.needs_vision else 0

    def _layers_on_offer(self, context: Context) -> tuple[int, ...]:
        """Candidates from the first selection on, without those that a probe looks at."""
        first, probed = 0, set(self._geometry.protected_layers)
        if self._tokens is not None:
            num_visual = max(self._shape.num_visual, 1)
            first = self._tokens.schedule(self._geometry, num_visual, 1)[0][0]
            probed |= {probe.layer_idx for probe in self._tokens.probes(self._geometry)}
        candidates = self._strategy.candidates(context)
        return tuple(idx for idx in candidates if idx >= first and idx not in probed)

    def allocate(self, request: BudgetRequest) -> Allocation:
        """Resolve a budget form. Raises InvalidField or BudgetTooSmall naming the field."""
        form = request.form
        if isinstance(form, FlopsShare):
            return self._by_share(form)
        if isinstance(form, Quality):
            return self._by_quality(form, named=request.strategy is not None)
        return self._by_counts(form)

    def smallest_share(self) -> float:
        """The share that the smallest legal plan costs."""
        skips = len(self._allowed) if self._splits else 0
        return self._cost(self._floor_tokens, skips).prefill_ratio

    @property
    def _floor_tokens(self) -> int:
        return self._floor if self._strategy.token_part else self._shape.num_visual

    @property
    def _splits(self) -> bool:
        return self._strategy.layer_part is not None and self._strategy.splits_numbers

    def _by_share(self, form: FlopsShare) -> Allocation:
        if form.share >= 1:
            return self._dense(limit=1.0)
        options = list(self._options(form))
        if not options:
            smallest = math.ceil(self.smallest_share() * 1e4) / 1e4
            raise BudgetTooSmall(
                f"budget {form.share:g} is too small for this prompt with strategy "
                f"{label(self._strategy)!r}; the smallest possible is {smallest:g}",
                param="budget",
            )
        tokens, skips = min(options, key=lambda option: self._loss(option, form.share))
        return self._bound(tokens, skips, limit=form.share)

    def _options(self, form: FlopsShare) -> Iterator[tuple[int, int]]:
        """For each layer count on offer, the most tokens that fit."""
        for skips in self._skip_counts():
            fits = self._most_tokens(form, skips)
            if fits is not None:
                yield fits, skips

    def _skip_counts(self) -> list[int]:
        """Few distinct counts, so that requests decode together: sixteenths of the depth."""
        if not self._splits:
            return [0]
        step = max(1, self._num_layers // 16)
        counts = list(range(0, len(self._allowed) + 1, step))
        return counts if counts[-1] == len(self._allowed) else [*counts, len(self._allowed)]

    def _most_tokens(self, form: FlopsShare, skips: int) -> int | None:
        low, high = self._floor_tokens, self._shape.num_visual
        if not form.allows(self._cost(low, skips)):
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if form.allows(self._cost(middle, skips)):
                low = middle
            else:
                high = middle - 1
        return low

    def _loss(self, option: tuple[int, int], share: float) -> tuple[float, int]:
        tokens, skips = option
        return self._frontier.loss(self._split(tokens, skips), share), skips

    def _split(self, tokens: int, skips: int) -> Split:
        num_visual = self._shape.num_visual
        return Split(
            token_ratio=tokens / num_visual if num_visual else 1.0,
            skip_ratio=skips / self._num_layers,
        )

    def _by_quality(self, form: Quality, *, named: bool) -> Allocation:
        """Of all sizes that promise the loyalty, the cheapest; of equals, the fewest skips."""
        strategy = self._strategy
        if form.loyalty >= 1 or (strategy.token_part is None and strategy.layer_part is None):
            return self._dense(limit=1.0, loyalty=1.0)
        loyalty = require_loyalty(self._loyalty, strategy, named=named)
        plans = list(self._loyal_plans(form, loyalty))
        costs = [cost_of(self._geometry, self._shape, plan) for plan in plans]
        best = min(range(len(plans)), key=lambda idx: (costs[idx].prefill_ratio, idx), default=None)
        if best is None or costs[best].saved <= 0:
            return self._dense(limit=1.0, loyalty=1.0)
        plan = plans[best]
        return Allocation(
            plan=plan,
            limit=costs[best].prefill_ratio,
            count=plan.num_kept,
            allowed=self._allowed,
            num_skipped=len(plan.skipped_layers),
        )

    def _loyal_plans(self, form: Quality, loyalty: CalibratedLoyalty) -> Iterator[Plan]:
        """For each layer count on offer, the fewest tokens that promise enough."""

        def promising(tokens: int, skips: int) -> Plan:
            promised = loyalty.at(self._split(tokens, skips))
            return replace(self._plan(tokens, skips), loyalty=promised)

        def allows(plan: Plan) -> bool:
            return form.allows(cost_of(self._geometry, self._shape, plan))

        for skips in self._skip_counts():
            low, high = self._floor_tokens, self._shape.num_visual
            if not allows(promising(high, skips)):
                continue
            while low < high:
                middle = (low + high) // 2
                if allows(promising(middle, skips)):
                    high = middle
                else:
                    low = middle + 1
            yield promising(high, skips)

    def _by_counts(self, form: Counts) -> Allocation:
        tokens, skips = self._checked_tokens(form), self._checked_skips(form)
        cost = self._cost(tokens, skips)
        if cost.saved <= 0:
            return self._dense(limit=1.0)
        return self._bound(tokens, skips, limit=cost.prefill_ratio)

    def _checked_tokens(self, form: Counts) -> int:
        total = self._shape.num_visual
        if form.tokens is None or form.tokens >= total:
            return total
        if self._strategy.token_part is None:
            raise refuse("tokens", f"strategy {label(self._strategy)!r} drops no visual tokens")
        if form.tokens < self._floor:
            raise BudgetTooSmall(
                f"tokens must be at least {self._floor}, got {form.tokens}", param="budget.tokens"
            )
        return form.tokens

    def _checked_skips(self, form: Counts) -> int:
        if form.layers is None or form.layers == self._num_layers:
            return 0
        if form.layers > self._num_layers:
            raise refuse("layers", f"the model has {self._num_layers} layers, got {form.layers}")
        if self._strategy.layer_part is None:
            raise refuse("layers", f"strategy {label(self._strategy)!r} skips no layers")
        smallest = self._num_layers - len(self._allowed)
        if form.layers < smallest:
            raise BudgetTooSmall(
                f"layers must be at least {smallest} with strategy {label(self._strategy)!r}, "
                f"got {form.layers}",
                param="budget.layers",
            )
        return self._num_layers - form.layers

    def _dense(self, *, limit: float, loyalty: float | None = None) -> Allocation:
        dense = Plan.dense(num_layers=self._num_layers, num_visual=self._shape.num_visual)
        plan = replace(dense, loyalty=loyalty)
        return Allocation(plan=plan, limit=limit, count=plan.num_visual, allowed=(), num_skipped=0)

    def _bound(self, tokens: int, skips: int, *, limit: float) -> Allocation:
        plan = self._plan(tokens, skips)
        return Allocation(
            plan=plan, limit=limit, count=tokens, allowed=self._allowed, num_skipped=skips
        )

    def _plan(self, tokens: int, skips: int) -> Plan:
        skipped = set(self._allowed[len(self._allowed) - skips :])
        points: Points = ()
        choice = self._router_flops if skips else 0
        if self._tokens is not None and tokens < self._shape.num_visual:
            points = self._tokens.schedule(self._geometry, self._shape.num_visual, tokens)
            choice = self._router_flops + self._look_flops
            choice += looking_flops(self._tokens, self._geometry, self._shape, points)
        return Plan(
            strategy=label(self._strategy),
            num_visual=self._shape.num_visual,
            runs=tuple(idx not in skipped for idx in range(self._num_layers)),
            selections=_selections(points),
            choice_flops=choice,
        )

    def _cost(self, tokens: int, skips: int) -> Cost:
        return cost_of(self._geometry, self._shape, self._plan(tokens, skips))


def settle(plan: Plan, *, skipped: tuple[int, ...]) -> Plan:
    """The bound plan with the strategy's layers filled in."""
    return replace(plan, runs=tuple(idx not in skipped for idx in range(len(plan.runs))))


def rescheduled(
    plan: Plan, tokens: Strategy, geometry: ModelGeometry, shape: PromptShape, remaining: Points
) -> Plan:
    """`plan` with other counts at its points `remaining`, and what looking then costs."""
    counts = dict(remaining)
    selections = tuple(
        replace(each, count=counts.get(each.layer_idx, each.count)) for each in plan.selections
    )
    looking = partial(looking_flops, tokens, geometry, shape)
    changed = replace(plan, selections=selections)
    return replace(
        changed,
        choice_flops=plan.choice_flops - looking(plan.points) + looking(changed.points),
    )


def trimmed(points: Points) -> Iterator[Points]:
    """`points` with ever fewer tokens: one at a time, from the last to the first, and again."""
    counts = [count for _, count in points]
    while max(counts) > 1:
        for idx in reversed(range(len(counts))):
            if counts[idx] > 1:
                counts[idx] -= 1
                yield tuple((layer, at) for (layer, _), at in zip(points, counts, strict=True))


def _selections(points: Points) -> tuple[Selection, ...]:
    return tuple(Selection(layer_idx=layer, count=count) for layer, count in points)
