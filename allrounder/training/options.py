"""Every choice of a router training. A field's description is its only documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

_DISTILLATION_OPTIONS = {
    "imitation_samples",
    "init_epochs",
    "init_learning_rate",
    "muon_learning_rate",
}
_PREFERENCE_OPTIONS = {"rounds", "on_policy"}


class RouterTrainingOptions(BaseModel):
    """Defaults follow PAR (section 4.2) where it says, and its published code where it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="The word demo, a local transformers folder, or a hub id.")
    data: str = Field(
        description="JSONL file of {image, question} lines without answers, images relative to it; "
        "or demo[:COUNT[:SEED]] for procedural samples."
    )
    output: Path | None = Field(
        default=None, description="Folder to write; default: router_weights/<model>."
    )
    work: Path | None = Field(
        default=None, description="Folder that keeps measured actions for later runs."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:<n>.")
    dtype: str = Field(default="auto", description="Number format of the frozen model.")
    allow_hub: bool = Field(default=False, description="Whether a hub id may be downloaded.")
    seed: int = Field(default=0, ge=0, description="Of actions, order and initial weights.")

    samples: PositiveInt = Field(default=5000, description="Training samples at most.")
    calibration_samples: int = Field(
        default=200, ge=0, description="Further samples for calibration; 0: none."
    )
    max_answer_tokens: PositiveInt = Field(
        default=32, description="Length limit of the dense answer that actions are held against."
    )

    actions: int = Field(default=5, ge=2, description="Perturbed actions per sample.")
    keep_ratios: tuple[float, ...] = Field(
        default=(0.25,),
        min_length=1,
        description="Shares of visual tokens to keep; each sample draws one of them.",
    )
    skip_layers: int | None = Field(
        default=None, ge=0, description="Layers each action skips; default: an eighth of the stack."
    )
    first_candidate: int | None = Field(
        default=None, ge=0, description="First layer that may be skipped; default: half way up."
    )
    proposal_layers: tuple[int, ...] = Field(
        default=(1,),
        min_length=1,
        description="Layers whose attention is perturbed, in turn; 1 is FastV's at K = 2.",
    )
    noise: Literal["logits", "zscore"] = Field(
        default="logits",
        description="Where noise is added: attention logits per head, or z-scored log attention.",
    )
    noise_scale: PositiveFloat = Field(
        default=10**0.5, description="Standard deviation of the noise."
    )
    rounds: PositiveInt = Field(
        default=1,
        description="Rounds of preferences; from the second on the actions perturb the router's "
        "own scores.",
    )
    on_policy: bool = Field(
        default=False, description="Perturb the router's own scores in the first round already."
    )
    min_kl_gap: float = Field(
        default=0.02, ge=0, description="Pairs whose KL differ by fewer nats are discarded."
    )

    width: PositiveInt | None = Field(
        default=None, description="Router width, a multiple of 8; default: 3/8 of the model's."
    )
    init: Literal["zero", "attention"] = Field(
        default="zero",
        description="attention: first attention distillation, from the frozen model's own "
        "text-to-image attention at the layer where its top tokens change the answer least.",
    )
    imitation_samples: int = Field(
        default=0,
        ge=0,
        description="Further questions for attention distillation alone: cheap, as nothing is "
        "generated and no action is tried.",
    )
    questions_per_image: PositiveInt = Field(
        default=4,
        description="Of procedural samples: the more, the better a router learns to tell them "
        "apart. A JSONL file brings its own.",
    )
    init_epochs: PositiveInt = Field(default=4, description="Epochs of attention distillation.")
    init_learning_rate: PositiveFloat = Field(default=2e-3, description="Its peak rate.")
    match_heads: int = Field(
        default=0,
        ge=0,
        description="Ways in which tokens are held against the question before the router's block; "
        "0: PAR's block alone. Must divide the width.",
    )
    muon_learning_rate: float = Field(
        default=0.0,
        ge=0,
        description="Muon's peak rate for the matrices in attention distillation; 0: AdamW for "
        "all.",
    )
    reduction: Literal["mean", "sum"] = Field(
        default="mean", description="Of the log-probabilities of an action's single choices."
    )
    layer_weight: float = Field(
        default=1.0, ge=0, description="Weight of the layers' term beside the tokens' term."
    )
    beta: PositiveFloat = Field(default=1.0, description="Of the preference loss.")
    epochs: int = Field(default=1, ge=0, description="Passes over the preference pairs.")
    batch_size: PositiveInt = Field(default=4, description="Samples per optimiser step.")
    learning_rate: PositiveFloat = Field(default=1e-4, description="Peak rate; cosine to zero.")
    weight_decay: float = Field(default=0.01, ge=0, description="Of AdamW.")
    blind: bool = Field(
        default=False,
        description="Control: train on the question of another sample. Such a router shows what "
        "can be had without reading the question.",
    )

    @model_validator(mode="after")
    def _has_no_idle_options(self) -> RouterTrainingOptions:
        """An option of a phase that is not run would change nothing."""
        said = self.model_dump(exclude_defaults=True).keys()
        phases = {
            "--init attention": (self.init == "attention", _DISTILLATION_OPTIONS),
            "--epochs above 0": (self.epochs > 0, _PREFERENCE_OPTIONS),
        }
        for needed, (given, names) in phases.items():
            idle = sorted(names & said) if not given else []
            if idle:
                raise ValueError(f"{', '.join(idle)} would change nothing without {needed}")
        return self
