"""Runs the frozen model over samples: dense answers, perturbed actions and the KL of each.

Shapes: A actions, V visual tokens, N candidate layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from allrounder.core import Plan
from allrounder.measure.frozen import DenseAnswer, EncodedQuestion, FrozenModel
from allrounder.measure.plans import make_plan
from allrounder.router.network import MetaRouter
from allrounder.training.actions import Actions, draw_actions
from allrounder.training.attention_target import AttentionTarget
from allrounder.training.bank import ImageBank
from allrounder.training.options import RouterTrainingOptions

# What decides a measurement; a cached one serves every other choice.
_MEASURING = {
    "data",
    "seed",
    "samples",
    "max_answer_tokens",
    "actions",
    "keep_ratios",
    "skip_layers",
    "first_candidate",
    "proposal_layers",
    "noise",
    "noise_scale",
}


@dataclass(frozen=True, kw_only=True)
class PreferenceSample:
    """One sample, its actions (True is kept: A x V, or run: A x N) and the KL of each.

    Attributes:
        question_ids: what the router reads.
        target_V: the frozen model's own attention over the visual tokens, summing to 1.
    """

    image_idx: int
    question_ids: tuple[int, ...]
    kept_AV: Tensor
    runs_AN: Tensor
    kl_nats: tuple[float, ...]
    target_V: Tensor


def collect(
    bank: ImageBank,
    options: RouterTrainingOptions,
    *,
    target: AttentionTarget,
    candidates: tuple[int, ...],
    network: MetaRouter | None = None,
) -> list[PreferenceSample]:
    """Measure every sample; the same images, options and model give the same result.

    Actions perturb the attention of the proposal layers, or, given a network, its own scores. With
    `options.work` set, a measurement of the former kind made there before is read instead.
    """
    path = _cache_path(bank, options, target) if network is None else None
    if path is not None and path.exists():
        return [PreferenceSample(**entry) for entry in torch.load(path, weights_only=True)]
    measured: list[PreferenceSample] = []
    layers = sorted({*options.proposal_layers, target.layer_idx})
    wanted = options.skip_layers
    eighth = round(bank.frozen.num_layers / 8)
    num_skipped = min(eighth if wanted is None else wanted, len(candidates))
    with tqdm(total=bank.num_questions, desc="actions", unit="sample") as bar:
        for batch in bank.batches():
            answers = bank.frozen.answer([asked for _, asked in batch], probed_layers=layers)
            drawn = [
                _propose(
                    _proposals(answer, options, bank.frozen, network),
                    options,
                    num_candidates=len(candidates),
                    num_skipped=num_skipped,
                    seed=len(measured) + offset,
                )
                for offset, answer in enumerate(answers)
            ]
            measured += _measure(bank, batch, answers, drawn, target=target, candidates=candidates)
            bar.update(len(batch))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([_as_dict(sample) for sample in measured], path)
    return measured


def _proposals(
    answer: DenseAnswer,
    options: RouterTrainingOptions,
    frozen: FrozenModel,
    network: MetaRouter | None,
) -> list[Tensor]:
    """Attention maps H x V to perturb; a router's logits are the logarithm of a single one."""
    if network is None:
        sources = [AttentionTarget(layer_idx=idx, rows="last") for idx in options.proposal_layers]
        return [source.by_head(answer) for source in sources]
    question_QD = frozen.question_rows(answer.asked)
    with torch.inference_mode():
        tokens_BV, _ = network(answer.asked.visual_VD[None].float(), question_QD[None].float())
    return [tokens_BV.softmax(-1)]


def _propose(
    maps: list[Tensor],
    options: RouterTrainingOptions,
    *,
    num_candidates: int,
    num_skipped: int,
    seed: int,
) -> Actions:
    generator = torch.Generator().manual_seed(options.seed << 32 | seed)
    ratios = options.keep_ratios
    ratio = ratios[int(torch.randint(len(ratios), (1,), generator=generator))]
    return draw_actions(
        maps,
        count=options.actions,
        num_kept=max(1, round(ratio * maps[0].shape[-1])),
        num_candidates=num_candidates,
        num_skipped=num_skipped,
        noise=options.noise,
        scale=options.noise_scale,
        generator=generator,
    )


def _measure(
    bank: ImageBank,
    batch: Sequence[tuple[int, EncodedQuestion]],
    answers: Sequence[DenseAnswer],
    drawn: Sequence[Actions],
    *,
    target: AttentionTarget,
    candidates: tuple[int, ...],
) -> Iterator[PreferenceSample]:
    frozen = bank.frozen
    trials = [
        (answer, plan)
        for answer, actions in zip(answers, drawn, strict=True)
        for plan in _plans(actions, candidates, num_layers=frozen.num_layers)
    ]
    divergences = iter(frozen.compare(trials))
    for (image_idx, asked), answer, actions in zip(batch, answers, drawn, strict=True):
        start, count = asked.prompt.question_slot
        yield PreferenceSample(
            image_idx=image_idx,
            question_ids=asked.prompt.token_ids[start : start + count],
            kept_AV=actions.kept_AV,
            runs_AN=actions.runs_AN,
            kl_nats=tuple(next(divergences).kl_nats for _ in actions.kept_AV),
            target_V=target.of(answer),
        )


def _plans(actions: Actions, candidates: tuple[int, ...], *, num_layers: int) -> Iterator[Plan]:
    for kept_V, runs_N in zip(actions.kept_AV, actions.runs_AN, strict=True):
        yield make_plan(
            num_layers=num_layers,
            num_visual=len(kept_V),
            kept=kept_V.nonzero()[:, 0].tolist(),
            skipped=[candidates[idx] for idx in (~runs_N).nonzero()[:, 0].tolist()],
        )


def _cache_path(
    bank: ImageBank, options: RouterTrainingOptions, target: AttentionTarget
) -> Path | None:
    if options.work is None:
        return None
    decisive = options.model_dump_json(include=_MEASURING)
    text = f"{bank.frozen.adapter.fingerprint} {target} {decisive}"
    return options.work / f"actions-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"


def _as_dict(sample: PreferenceSample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in PreferenceSample.__dataclass_fields__}
