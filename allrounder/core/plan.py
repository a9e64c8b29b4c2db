"""Nouns of pruning: what will be computed, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """At the input of decoder layer `layer_idx` only these visual rows go on.

    Attributes:
        count: how many survive; exact, and known before prefill.
        kept: their indexes among the unpruned visual tokens, ascending; None until chosen.
    """

    layer_idx: int
    count: int
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be computed for one request: layer bits and visual-token selections.

    Attributes:
        runs: one bit per decoder layer; False is never computed and holds no KV.
        selections: ascending by layer; counts never grow.
        choice_flops: what choosing cost (router network, recomputed attention rows).
        router: identity of the router whose scores were used, if any.
        loyalty: share of greedy answers equal to the dense one that the calibration promises; None
            where the budget did not ask for it.
    """

    strategy: str
    num_visual: int
    runs: tuple[bool, ...]
    selections: tuple[Selection, ...] = ()
    choice_flops: int = 0
    router: str | None = None
    loyalty: float | None = None

    @classmethod
    def dense(cls, *, num_layers: int, num_visual: int) -> Plan:
        return cls(strategy="none", num_visual=num_visual, runs=(True,) * num_layers)

    @property
    def num_layers_run(self) -> int:
        return sum(self.runs)

    @property
    def skipped_layers(self) -> tuple[int, ...]:
        return tuple(idx for idx, runs in enumerate(self.runs) if not runs)

    @property
    def num_kept(self) -> int:
        return self.selections[-1].count if self.selections else self.num_visual

    @property
    def kept(self) -> tuple[int, ...] | None:
        return self.selections[-1].kept if self.selections else tuple(range(self.num_visual))

    @property
    def last_selection_layer(self) -> int:
        return self.selections[-1].layer_idx if self.selections else 0

    @property
    def points(self) -> tuple[tuple[int, int], ...]:
        """(layer, surviving visual rows) of each selection, ascending by layer."""
        return tuple((selection.layer_idx, selection.count) for selection in self.selections)

    @property
    def is_chosen(self) -> bool:
        """Every selection says which rows it keeps."""
        return all(selection.kept is not None for selection in self.selections)

    def selection_at(self, layer_idx: int) -> Selection | None:
        return next((each for each in self.selections if each.layer_idx == layer_idx), None)

    def with_kept(self, layer_idx: int, kept: tuple[int, ...]) -> Plan:
        """The selection at `layer_idx` filled in."""
        return replace(
            self,
            selections=tuple(
                replace(each, kept=kept) if each.layer_idx == layer_idx else each
                for each in self.selections
            ),
        )

    @property
    def is_dense(self) -> bool:
        return all(self.runs) and self.num_kept == self.num_visual

    def visual_rows(self, layer_idx: int) -> int:
        """Visual rows that enter decoder layer `layer_idx`."""
        count = self.num_visual
        for selection in self.selections:
            if selection.layer_idx <= layer_idx:
                count = selection.count
        return count

    def spans(self) -> tuple[tuple[int, int], ...]:
        """(visual rows, layers run) of each stretch between selections, first layer first."""
        starts = [0, *(selection.layer_idx for selection in self.selections), len(self.runs)]
        counts = [self.num_visual, *(selection.count for selection in self.selections)]
        return tuple(
            (count, sum(self.runs[start:end]))
            for count, start, end in zip(counts, starts[:-1], starts[1:], strict=True)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """FLOPs and KV bytes of one request under a plan, beside the dense counterfactual.

    Attributes:
        loyalty: that of the plan.
    """

    dense_prefill: int
    dense_decode: int
    executed_prefill: int
    executed_decode: int
    token_plan: int
    router: int
    kv_bytes: int
    dense_kv_bytes: int
    num_kept: int
    num_layers_run: int
    loyalty: float | None = None

    @property
    def dense(self) -> int:
        return self.dense_prefill + self.dense_decode

    @property
    def executed(self) -> int:
        return self.executed_prefill + self.executed_decode + self.router

    @property
    def saved(self) -> int:
        return self.dense - self.executed

    @property
    def saved_by_tokens(self) -> int:
        return self.dense - self.token_plan

    @property
    def saved_by_layers(self) -> int:
        return self.token_plan - self.executed_prefill - self.executed_decode

    @property
    def prefill_ratio(self) -> float:
        return (self.executed_prefill + self.router) / self.dense_prefill

    @property
    def total_ratio(self) -> float:
        return self.executed / self.dense
