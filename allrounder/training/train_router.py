"""Trains, calibrates and describes a router for one frozen model."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random as RandomStream
from statistics import fmean
from typing import Any, TypeVar

import torch

from allrounder.errors import InvalidField
from allrounder.measure.frozen import FrozenModel
from allrounder.models.loading import load_adapter
from allrounder.router.network import MetaRouter, RouterConfig
from allrounder.router.weights import Manifest, save_router
from allrounder.training.attention_target import AttentionTarget, best_target
from allrounder.training.bank import ImageBank
from allrounder.training.calibrate import calibrate
from allrounder.training.card import CARD_NAME, write_card
from allrounder.training.collect import PreferenceSample, collect
from allrounder.training.distillation import (
    DistillationSample,
    distillation_loss,
    distillation_samples,
)
from allrounder.training.figures import FigureTable
from allrounder.training.fit import Schedule, fit
from allrounder.training.options import RouterTrainingOptions
from allrounder.training.preferences import PreferenceLoss, balanced_pairs
from allrounder.training.samples import load_images, split_images

logger = logging.getLogger(__name__)
Trained = TypeVar("Trained", DistillationSample, PreferenceSample)
ROUTERS = Path("router_weights")
# Below these the actions of a sample hardly differ, and the preferences are noise.
WANTED_KL_NATS = 0.3
WANTED_USEFUL = 0.8


def train_router(options: RouterTrainingOptions) -> Manifest:
    """Write weights, manifest and card to `options.output`; logs progress, tqdm on stderr.

    Raises:
        InvalidField: the data cannot be read, or an option does not fit the model.
        ModelUnsupported: the model cannot be loaded.
    """
    started = time.monotonic()
    torch.manual_seed(options.seed)
    adapter = load_adapter(
        options.model, device=options.device, dtype=options.dtype, allow_hub=options.allow_hub
    )
    frozen = FrozenModel(adapter, max_answer_tokens=options.max_answer_tokens)
    held_back, training, distilled = _banks(frozen, options)
    network = MetaRouter(_config(frozen, options)).to(adapter.device)
    facts = _train(network, training, distilled, options)
    calibration = calibrate(network, held_back) if held_back.num_questions else None
    figures = FigureTable(network, held_back, calibration).measure() if calibration else None
    facts["seconds"] = round(time.monotonic() - started)
    folder = options.output or ROUTERS / adapter.name
    manifest = save_router(
        folder,
        network,
        model=adapter.name,
        fingerprint=adapter.fingerprint,
        geometry=adapter.geometry,
        training=facts,
        calibration=calibration,
    )
    card = write_card(manifest, options, figures)
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    logger.info("wrote %s", folder)
    return manifest


def _banks(
    frozen: FrozenModel, options: RouterTrainingOptions
) -> tuple[ImageBank, ImageBank, ImageBank]:
    """Disjoint images for calibration, for actions and for attention distillation."""
    images = load_images(
        options.data,
        num_samples=options.samples + options.calibration_samples + options.imitation_samples,
        seed=options.seed,
        questions_per_image=options.questions_per_image,
    )
    held_back, rest = split_images(images, num_first=options.calibration_samples)
    training, distilled = split_images(rest, num_first=options.samples)
    if not training:
        raise InvalidField(
            f"the data hold too few samples: {options.calibration_samples} are kept for "
            "calibration and none is left to train on",
            param="data",
        )
    banks = [ImageBank(frozen, each) for each in (held_back, training, distilled)]
    return banks[0], banks[1], banks[2]


def _config(frozen: FrozenModel, options: RouterTrainingOptions) -> RouterConfig:
    geometry = frozen.adapter.geometry
    highest = max(options.first_candidate or 0, *options.proposal_layers)
    if highest >= geometry.num_layers:
        raise InvalidField(
            f"the model has layers 0 to {geometry.num_layers - 1}, got {highest}",
            param="first_candidate or proposal_layers",
        )
    config = RouterConfig.for_model(
        model_width=geometry.width,
        num_layers=geometry.num_layers,
        first_candidate=options.first_candidate,
    )
    open_layers = tuple(idx for idx in config.candidates if idx not in geometry.protected_layers)
    width = options.width or config.width
    if width % (2 * config.num_heads):
        raise InvalidField(
            f"width must be a multiple of {2 * config.num_heads}, got {width}", param="width"
        )
    if options.match_heads and width % options.match_heads:
        raise InvalidField(
            f"match_heads must divide the width {width}, got {options.match_heads}",
            param="match_heads",
        )
    return replace(config, candidates=open_layers, width=width, match_heads=options.match_heads)


def _train(
    network: MetaRouter, bank: ImageBank, distilled: ImageBank, options: RouterTrainingOptions
) -> dict[str, Any]:
    """Fits the router in place; returns the facts of the run."""
    facts: dict[str, Any] = {
        "options": options.model_dump(mode="json", exclude={"output", "work"}),
        "parameters": sum(weight.numel() for weight in network.parameters()),
    }
    target = AttentionTarget(layer_idx=1, rows="last")
    if options.init == "attention":
        target, facts["imitated_kl_nats"] = best_target(bank)
        facts |= {"imitated_layer": target.layer_idx, "imitated_rows": target.rows}
        facts |= {"imitated_pick": target.pick}
        logger.info(
            "distilling %s, whose top tokens cost %.3f nats", target, facts["imitated_kl_nats"]
        )
        facts |= _distil_attention(network, bank, distilled, target, options)
    for idx in range(options.rounds if options.epochs else 0):
        proposer = network if idx or options.on_policy else None
        samples = collect(
            bank, options, target=target, candidates=network.config.candidates, network=proposer
        )
        facts |= _facts(samples, options)
        if options.blind:
            samples = _with_wrong_questions(samples, options.seed)
        schedule = _schedule("preferences", options.epochs, options.learning_rate, options)
        facts["preference_loss"] = fit(network, samples, bank, PreferenceLoss(options), schedule)
        logger.info("preference loss %.4f", facts["preference_loss"])
    return facts


def _distil_attention(
    network: MetaRouter,
    bank: ImageBank,
    distilled: ImageBank,
    target: AttentionTarget,
    options: RouterTrainingOptions,
) -> dict[str, Any]:
    """On the questions set apart for it or else on those of the actions."""
    source = distilled if distilled.images else bank
    samples = distillation_samples(source, target)
    if options.blind:
        samples = _with_wrong_questions(samples, options.seed)
    schedule = replace(
        _schedule("distillation", options.init_epochs, options.init_learning_rate, options),
        muon_learning_rate=options.muon_learning_rate,
    )
    loss = fit(network, samples, source, distillation_loss, schedule)
    return {"glances": len(samples), "imitation_loss": loss}


def _facts(samples: Sequence[PreferenceSample], options: RouterTrainingOptions) -> dict[str, Any]:
    """Statistics of the actions, logged, with a warning where they hardly differ."""
    pairs = [balanced_pairs(s.kl_nats, min_gap=options.min_kl_gap) for s in samples]
    facts = {
        "samples": len(samples),
        "pairs": sum(len(of_sample) for of_sample in pairs),
        "mean_action_kl_nats": fmean(kl for sample in samples for kl in sample.kl_nats),
        "best_action_kl_nats": fmean(min(sample.kl_nats) for sample in samples),
        "worst_action_kl_nats": fmean(max(sample.kl_nats) for sample in samples),
        "useful_ratio": fmean(bool(of_sample) for of_sample in pairs),
    }
    logger.info("actions: %s", facts)
    poor = facts["mean_action_kl_nats"] < WANTED_KL_NATS or facts["useful_ratio"] < WANTED_USEFUL
    if poor and options.epochs:
        logger.warning(
            "the actions are too alike to learn much from: mean KL %.2f (wanted %.1f), useful "
            "samples %.0f %% (wanted %.0f %%); use a larger noise_scale",
            facts["mean_action_kl_nats"],
            WANTED_KL_NATS,
            100 * facts["useful_ratio"],
            100 * WANTED_USEFUL,
        )
    return facts


def _with_wrong_questions(samples: Sequence[Trained], seed: int) -> list[Trained]:
    questions = [sample.question_ids for sample in samples]
    RandomStream(seed).shuffle(questions)
    return [
        replace(sample, question_ids=ids) for sample, ids in zip(samples, questions, strict=True)
    ]


def _schedule(
    name: str, epochs: int, learning_rate: float, options: RouterTrainingOptions
) -> Schedule:
    return Schedule(
        name=name,
        epochs=epochs,
        batch_size=options.batch_size,
        learning_rate=learning_rate,
        weight_decay=options.weight_decay,
        seed=options.seed,
    )
