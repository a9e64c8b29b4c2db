"""Plans to measure: of given rows and layers, or of given size by a strategy.

A strategy chooses with the code that serves requests, from what the dense answer shows of the
model. There is no budget here: a plan may cost more than the dense one, which no request gets.

Shapes: V visual tokens, Q question rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allrounder.core import Plan, Selection
from allrounder.engine.planning.planner import with_images
from allrounder.measure.frozen import DenseAnswer, FrozenModel
from allrounder.pruning.strategy import Context, RouterScores, Strategy, View, refuse
from allrounder.router.network import MetaRouter


def make_plan(
    *,
    num_layers: int,
    num_visual: int,
    kept: Sequence[int] | None = None,
    skipped: Sequence[int] = (),
    layer_idx: int = 0,
) -> Plan:
    """Keep the visual tokens `kept` from `layer_idx` on and run all layers but `skipped`."""
    selections: tuple[Selection, ...] = ()
    if kept is not None:
        rows = tuple(sorted(kept))
        selections = (Selection(layer_idx=layer_idx, count=len(rows), kept=rows),)
    return Plan(
        strategy="trial",
        num_visual=num_visual,
        runs=tuple(idx not in skipped for idx in range(num_layers)),
        selections=selections,
    )


@torch.inference_mode()
def view_of(
    answer: DenseAnswer,
    frozen: FrozenModel,
    context: Context,
    *,
    seed: int,
    network: MetaRouter | None = None,
    question_QD: Tensor | None = None,
) -> View:
    """What a strategy may see; the router reads `question_QD` in place of the own question."""
    own_QD = frozen.question_rows(answer.asked)
    visual_VD = answer.asked.visual_VD
    scores = None
    if network is not None:
        read_QD = own_QD if question_QD is None else question_QD
        tokens, layers = network(visual_VD[None].float(), read_QD[None].float())
        scores = RouterScores(token_logits=tokens[0], layer_logits=layers[0])
    view = View(
        context=context,
        visual_VD=visual_VD,
        question_QD=own_QD,
        seed=seed,
        router=scores,
        attention={idx: rows_HSV[:, -1:] for idx, rows_HSV in answer.attention.items()},
    )
    return with_images(view, answer.asked.visual, answer.asked.layouts)


def plan_by(strategy: Strategy, view: View, *, num_kept: int, num_skipped: int) -> Plan:
    """The strategy's plan with `num_kept` tokens and `num_skipped` layers fewer.

    Raises:
        InvalidField: a strategy that merges or resizes, or that looks again at what its own plan
            left: the dense answer does not show that. One that needs vision where the image was
            encoded without its facts.
    """
    tokens, layers = strategy.token_part, strategy.layer_part
    geometry, num_visual = view.context.geometry, len(view.visual_VD)
    layer_idx, kept = 0, None
    if tokens is not None:
        points = tokens.schedule(geometry, num_visual, num_kept)
        looks_ahead = any(probe.ahead for probe in tokens.probes(geometry))
        remakes_rows = tokens.merges or tokens.renumbers or tokens.resizes
        if len(points) > 1 or remakes_rows or looks_ahead:
            raise refuse("strategy", f"{tokens.name} can be tried on running requests only")
        if tokens.needs_vision and view.vision is None:
            raise refuse("strategy", f"{tokens.name} needs images that are encoded with facts")
        layer_idx = points[0][0]
        if num_kept < num_visual:
            kept = tokens.select(view, num_kept).tolist()
    skipped: tuple[int, ...] = ()
    if layers is not None and num_skipped:
        protected = geometry.protected_layers
        candidates = layers.candidates(view.context)
        allowed = tuple(idx for idx in candidates if idx >= layer_idx and idx not in protected)
        skipped = layers.skip(view, allowed, min(num_skipped, len(allowed)))
    return make_plan(
        num_layers=geometry.num_layers,
        num_visual=num_visual,
        kept=kept,
        skipped=skipped,
        layer_idx=layer_idx,
    )
