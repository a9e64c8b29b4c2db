"""Training of the demo model from nothing to saved weights: scenes, vision, decoder, export."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from allrounder.demo.held_out import draw_exams
from allrounder.demo.scene_pool import ScenePool, load_pool
from allrounder.demo.scenes import NUM_PATCHES, object_marks
from allrounder.measure.statistics import Estimate
from research.demo_model.decoder import PackedDecoder
from research.demo_model.decoder_training import DecoderOptions, DecoderTraining, answers_correct
from research.demo_model.evaluate import MAX_NEW_TOKENS, WEIGHTS, accuracy_by_type
from research.demo_model.lessons import Curriculum
from research.demo_model.lvlm import build_model, encode_images, to_pixels
from research.demo_model.packing import pack
from research.demo_model.tokens import IMAGE, build_processor, tokenise, train_tokenizer, word_ids
from research.demo_model.vision_training import WORDS, VisionOptions, WordBook, train_vision

logger = logging.getLogger(__name__)
HEAD_SHARE = 0.3
TOKENIZER_SCENES = 1500
EVALUATION_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class DemoTrainingOptions:
    """Everything that decides a training; running it again with the same folders resumes it."""

    output: Path = WEIGHTS
    work: Path = Path(tempfile.gettempdir()) / "allrounder-demo"
    num_scenes: int = 24000
    num_threads: int = 2
    seed: int = 0
    # A saved model to go on from, vision and words as they are; None: from nothing.
    start: Path | None = None
    evaluation_scenes: int = 150
    # An unfinished model is exported as soon as it answers this share of the questions.
    export_from: float = 0.7
    vision: VisionOptions = field(default_factory=VisionOptions)
    decoder: DecoderOptions = field(default_factory=DecoderOptions)
    curriculum: Curriculum = field(default_factory=Curriculum)


def continued(start: Path) -> DemoTrainingOptions:
    """The second run of the recipe: hard types at once, more text a step, a lower peak rate."""
    return DemoTrainingOptions(
        start=start,
        decoder=DecoderOptions(num_steps=1200, muon_lr=0.008, adam_lr=1e-3),
        curriculum=Curriculum.continued(max_blocks=8),
    )


def refined(start: Path) -> DemoTrainingOptions:
    """The third run: other lessons at a falling rate, more counting, cues up to the end."""
    return DemoTrainingOptions(
        start=start,
        decoder=DecoderOptions(
            num_steps=2200,
            muon_lr=0.006,
            adam_lr=7e-4,
            constant_share=0.25,
            tally_weight=0.5,
            seed=2,
        ),
        curriculum=Curriculum.continued(
            max_blocks=8, drill_until=0, grounded_until=1.0, yes_no_relations=1, per_number_type=4
        ),
    )


class Part(StrEnum):
    """What of the recipe may be left out, to see what it does."""

    TOKEN_DROP = "token-drop"
    LAYER_DROP = "layer-drop"
    GROUNDING = "grounding"


def ablated(options: DemoTrainingOptions, parts: Iterable[Part]) -> DemoTrainingOptions:
    """The same training, as many steps and lessons, without these parts."""
    changes: dict[Part, dict[str, Any]] = {
        Part.TOKEN_DROP: {"drops_tokens": False},
        Part.LAYER_DROP: {"max_layer_drop": 0.0},
        Part.GROUNDING: {"grounded_until": 0.0},
    }
    curriculum = options.curriculum
    for part in parts:
        curriculum = replace(curriculum, **changes[part])
    return replace(options, curriculum=curriculum)


def train(options: DemoTrainingOptions) -> None:
    """Train and save the model; writes checkpoints to `work` and weights to `output`."""
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(options.seed)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(_tokenizer_folder(options))
    pool = load_pool(
        options.work,
        num_scenes=options.num_scenes,
        seed=options.seed,
        workers=options.num_threads,
    )
    model = _begin(options, tokenizer, pool)
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    model.lm_head.requires_grad_(True)
    decoder_options = replace(
        options.decoder, seed=options.decoder.seed + options.seed, scene_seed=options.seed
    )
    training = DecoderTraining(
        model, tokenizer, pool, options.work, decoder_options, options.curriculum
    )

    def evaluate(decoder: PackedDecoder, step: int) -> None:
        scores = evaluate_packed(model, tokenizer, decoder, options.evaluation_scenes)
        report = " ".join(f"{name} {each.value:.3f}" for name, each in scores.items())
        logger.info("step %d, held-out (n=%d): %s", step, scores["overall"].n, report)
        if step == decoder_options.num_steps or scores["overall"].value >= options.export_from:
            export(model, tokenizer, options.output)

    training.run(evaluate)
    export(model, tokenizer, options.output)


def _begin(
    options: DemoTrainingOptions, tokenizer: PreTrainedTokenizerFast, pool: ScenePool
) -> LlavaForConditionalGeneration:
    """What the decoder's training starts from."""
    if options.start is not None:
        return LlavaForConditionalGeneration.from_pretrained(options.start)
    model = build_model(
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        image_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    book = train_vision(model, pool, options.work, replace(options.vision, seed=options.seed))
    teach_words(model, tokenizer, book)
    return model


@torch.no_grad()
def teach_words(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, book: WordBook
) -> None:
    """Give every spelling of a word the vector that patches were aligned with."""
    embeddings = model.model.language_model.embed_tokens.weight
    for word, vector in zip(WORDS, book.vectors, strict=True):
        for token in word_ids(tokenizer, word):
            embeddings[token] = vector
    model.lm_head.weight.copy_(embeddings * HEAD_SHARE)


@torch.no_grad()
def evaluate_packed(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    decoder: PackedDecoder,
    num_scenes: int,
) -> dict[str, Estimate]:
    """Held-out accuracy with all visual tokens and layers, by exact match of the first answer."""
    exams = draw_exams(num_scenes)
    questions, images, right = [], [], []
    for start in range(0, num_scenes, EVALUATION_ROWS):
        batch = exams[start : start + EVALUATION_ROWS]
        packed = pack(
            [tokenise(tokenizer, exam.questions) for exam in batch],
            [object_marks(exam.scene) for exam in batch],
        )
        pixels = torch.cat([to_pixels(exam.image[None]) for exam in batch])
        kept = torch.arange(NUM_PATCHES).expand(len(batch), -1)
        states = decoder(encode_images(model, pixels), kept, packed, num_visual=NUM_PATCHES)
        correct = answers_correct(decoder.logits(states, packed), packed)
        rows = torch.zeros(len(packed.questions), dtype=torch.long)
        rows[packed.target_question] = packed.target_at[0]
        questions += [item.question for item in packed.questions]
        images += [start + row for row in rows.tolist()]
        right += correct.tolist()
    return accuracy_by_type(questions, images, right)


def export(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Save weights, configuration and processor so that plain transformers can load them."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
    model.save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    logger.info("exported to %s", folder)


def _tokenizer_folder(options: DemoTrainingOptions) -> Path:
    if options.start is not None:
        return options.start
    folder = options.work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        num_scenes = min(TOKENIZER_SCENES, options.num_scenes)
        train_tokenizer(options.seed, num_scenes).save_pretrained(folder)
    return folder
