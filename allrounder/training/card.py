"""The model card beside a router's weights: description, training and figures."""

from __future__ import annotations

from typing import Any

from allrounder.router.weights import Calibration, Loyalty, Manifest
from allrounder.training.figures import Figures
from allrounder.training.options import RouterTrainingOptions

CARD_NAME = "CARD.md"
_UNSAID = {"output", "work", "device"}


def command(options: RouterTrainingOptions) -> str:
    """The command line that repeats the run; fields at their defaults are left out."""
    words = ["allrounder", "train", "router"]
    for name, value in options.model_dump(exclude_defaults=True, exclude=_UNSAID).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag)
        elif isinstance(value, tuple):
            words += [word for single in value for word in (flag, f"{single:g}")]
        else:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return " ".join(words)


def write_card(manifest: Manifest, options: RouterTrainingOptions, figures: Figures | None) -> str:
    """Markdown, from the run's own facts."""
    training = manifest.training
    sections = [
        f"# Meta-router for {manifest.model}",
        f"Scores visual tokens and decoder layers {_candidates(manifest)} of the frozen model "
        f"with fingerprint `{manifest.fingerprint}`; {training['parameters']:,} parameters. "
        "One training serves any number of kept tokens and skipped layers.",
        "## Training",
        _method(options),
        f"```\n{command(options)}\n```",
        _facts(training),
    ]
    if manifest.calibration is not None and manifest.calibration.loyalty is not None:
        sections += ["## Loyalty", _loyalty(manifest.calibration, manifest.calibration.loyalty)]
    if figures is not None:
        sections += ["## Figures", _figures(figures), _question(figures)]
    return "\n\n".join(sections) + "\n"


def _method(options: RouterTrainingOptions) -> str:
    phases = []
    if options.init == "attention":
        phases.append(
            "First attention distillation: the router's token scores are fitted to the frozen "
            "model's own attention from the question to the image."
        )
    if options.epochs:
        phases.append(
            "Preferences as PAR's section 4.2 says (Pruning All-Rounder): perturbed actions, KL to "
            "the frozen model's own greedy answer, balanced pairs, a reference-free loss."
        )
    return " ".join(["Without labels.", *phases])


def _candidates(manifest: Manifest) -> str:
    candidates = manifest.network["candidates"]
    return f"{candidates[0]} to {candidates[-1]}"


def _facts(training: dict[str, Any]) -> str:
    lines = ["| fact | value |", "|---|---|"]
    for name, value in training.items():
        if name != "options":
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join(lines)


def _loyalty(calibration: Calibration, loyalty: Loyalty) -> str:
    ratios = calibration.token_ratios
    lines = [
        f"Share of greedy answers equal to the dense one on {loyalty.num_samples} samples that "
        "were not trained on, by layers skipped and tokens kept, smoothed to be monotone along "
        "both (isotonic regression), with the standard error by image of each size as measured. "
        "A budget's quality is held against these, less the service's quality margin.",
        "",
        "| skipped | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |",
        "|---" * (len(ratios) + 1) + "|",
    ]
    rows = zip(calibration.skip_ratios, loyalty.mean, loyalty.standard_error, strict=True)
    for skipped, means, errors in rows:
        cells = (f"{mean:.3f} ± {error:.3f}" for mean, error in zip(means, errors, strict=True))
        lines.append(f"| {skipped:.1%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figures(figures: Figures) -> str:
    lines = [
        f"On {figures.num_samples} unlabelled samples that were not trained on (mean ± standard "
        "error over samples; KL in nats per answer token to the dense answer; agreement: share of "
        "greedy answers equal to the dense one; FLOPs: share of dense prefill, choosing included). "
        "FastV drops its tokens only before layer K, so it costs more at equal counts.",
        "",
        "| tokens kept | layers skipped | strategy | FLOPs | KL | agreement |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures.rows:
        tokens, layers = row.size
        lines.append(
            f"| {tokens:.0%} | {layers:.1%} | {row.name} | {row.cost.value:.1%} | {row.kl_nats} "
            f"| {row.agreement} |"
        )
    return "\n".join(lines)


def _question(figures: Figures) -> str:
    gains = figures.question_gain
    lines = ["| tokens kept | layers skipped | KL added by a wrong question |", "|---|---|---|"]
    lines += [f"| {size[0]:.0%} | {size[1]:.1%} | {gain} |" for size, gain in gains.items()]
    clear = [size for size, gain in gains.items() if gain.value > 2 * gain.stderr]
    finding = (
        "the router reads the question"
        if 2 * len(clear) > len(gains)
        else "it is not shown that the router reads the question, it may be a mere saliency map"
    )
    verdict = (
        "Given another sample's question, the plans are worse by more than two standard errors at "
        f"{len(clear)} of {len(gains)} sizes: {finding}."
    )
    return verdict + "\n\n" + "\n".join(lines)
