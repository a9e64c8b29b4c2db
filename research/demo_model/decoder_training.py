"""Resumable training of the decoder on frozen visual tokens, with phrase grounding."""

from __future__ import annotations

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from allrounder.demo.scene_pool import ScenePool
from allrounder.demo.scenes import NUM_PATCHES
from allrounder.training.muon import BatchedMuon
from research.demo_model.checkpoint import load_checkpoint, save_checkpoint
from research.demo_model.decoder import PackedDecoder
from research.demo_model.lessons import Curriculum, Lesson, draw_lesson
from research.demo_model.lvlm import encode_images, to_pixels
from research.demo_model.packing import Packed
from research.demo_model.tokens import prefix_ids

logger = logging.getLogger(__name__)
WARMUP_STEPS = 30
FINAL_RATE = 0.03
GRADIENT_CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    num_steps: int = 1800
    muon_lr: float = 0.012
    adam_lr: float = 1.5e-3
    constant_share: float = 0.55
    grounding_layer: int = 6
    grounding_heads: int = 2
    noun_weight: float = 0.4
    last_weight: float = 0.1
    tally_weight: float = 0.3
    checkpoint_steps: int = 75
    evaluate_steps: int = 120
    seed: int = 0
    scene_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StepResult:
    loss: Tensor
    answer_loss: float
    noun_loss: float
    correct: Tensor


Evaluate = Callable[[PackedDecoder, int], None]


class DecoderTraining:
    """Owns decoder, optimisers and step counter of one training."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        pool: ScenePool,
        folder: Path,
        options: DecoderOptions,
        curriculum: Curriculum,
    ) -> None:
        self.model, self.tokenizer, self.pool = model, tokenizer, pool
        self.options, self.curriculum = options, curriculum
        self.path = folder / "decoder.pt"
        self.decoder = PackedDecoder(model, prefix_ids(tokenizer))
        self.trained = nn.ModuleList([model.model.language_model, model.lm_head])
        self.muon, self.adam = self._optimisers()
        self.step = 0
        self._recent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=200))

    def run(self, evaluate: Evaluate) -> None:
        """Train to the last step, from the last checkpoint if there is one."""
        self._resume()
        bar = tqdm(total=self.options.num_steps, initial=self.step, desc="decoder")
        while self.step < self.options.num_steps:
            result = self._train_step()
            self.step += 1
            bar.update()
            bar.set_postfix(self._summary(result))
            done = self.step == self.options.num_steps
            if done or self.step % self.options.checkpoint_steps == 0:
                self._save()
            if done or self.step % self.options.evaluate_steps == 0:
                logger.info("decoder step %d, training %s", self.step, self._accuracies())
                evaluate(self.decoder, self.step)
        bar.close()

    def _optimisers(self) -> tuple[BatchedMuon, torch.optim.AdamW]:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, param in self.trained.named_parameters():
            inner = param.ndim == 2 and name.startswith("0.layers")
            (matrices if inner else others).append(param)
        adam = torch.optim.AdamW(
            others, lr=self.options.adam_lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        return BatchedMuon(matrices, lr=self.options.muon_lr), adam

    def _resume(self) -> None:
        if (state := load_checkpoint(self.path)) is None:
            return
        self.trained.load_state_dict(state["trained"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step = state["step"]

    def _save(self) -> None:
        state = {"trained": self.trained.state_dict(), "step": self.step}
        state |= {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        save_checkpoint(self.path, state)

    def _train_step(self) -> StepResult:
        progress = self.step / self.options.num_steps
        lesson = draw_lesson(
            self.pool,
            self.tokenizer,
            self.curriculum,
            seed=self.options.seed,
            step=self.step,
            progress=progress,
            num_layers=len(self.model.model.language_model.layers),
            scene_seed=self.options.scene_seed,
        )
        result = self._losses(lesson, grounded=progress < self.curriculum.grounded_until)
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)
        result.loss.backward()
        nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], GRADIENT_CLIP)
        rate = learning_rate_factor(
            self.step, self.options.num_steps, constant_share=self.options.constant_share
        )
        self.muon.param_groups[0]["lr"] = self.options.muon_lr * rate
        self.adam.param_groups[0]["lr"] = self.options.adam_lr * rate
        self.muon.step()
        self.adam.step()
        self._remember(lesson.packed, result.correct)
        return result

    def _losses(self, lesson: Lesson, *, grounded: bool) -> StepResult:
        packed = lesson.packed
        with torch.no_grad():
            visual = encode_images(self.model, to_pixels(self.pool.images[lesson.scenes]))
        visual = visual.gather(1, lesson.kept[..., None].expand(-1, -1, visual.shape[-1]))
        layer = self.options.grounding_layer if grounded else None
        states = self.decoder(
            visual, lesson.kept, packed, num_visual=NUM_PATCHES, skip=lesson.skip, watch=layer
        )
        logits = self.decoder.logits(states, packed)
        losses = F.cross_entropy(logits, packed.target_ids, reduction="none")
        answer = (losses * packed.target_weights).sum() / len(packed.questions)
        loss, noun_loss = answer, 0.0
        if states.watched_BHLC is not None:
            nouns, lasts, tally = self._grounding(states.watched_BHLC, lesson)
            loss = loss + self.options.noun_weight * nouns + self.options.last_weight * lasts
            loss = loss + self.options.tally_weight * tally
            noun_loss = nouns.item()
        return StepResult(
            loss=loss,
            answer_loss=answer.item(),
            noun_loss=noun_loss,
            correct=answers_correct(logits, packed),
        )

    def _grounding(self, watched_BHLC: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the log of the attention on the named objects, or on <s> where none is named.

        And, for nouns, how far the next head is from looking at <s> and at the middle of each named
        object alike: the share of <s> then tells their number.
        """
        packed, num_prefix = lesson.packed, len(self.decoder.prefix)
        rows, columns = packed.grounded_at
        heads = self.options.grounding_heads
        attention = watched_BHLC[rows, :heads, columns]
        tally = watched_BHLC[rows, heads, columns]
        wanted = packed.grounded_on.gather(1, lesson.kept[rows])
        nowhere = ~wanted.any(dim=1)
        on_image = (attention[..., num_prefix:] * wanted[:, None]).sum(-1)
        mass = torch.where(nowhere[:, None], attention[..., 0], on_image)
        losses = -(mass + 1e-6).log().mean(dim=1)
        last = packed.grounded_last
        # A batch without noun phrases has no noun loss.
        nouns = losses[~last].mean() if (~last).any() else losses.new_zeros(())
        tallies = tally_loss(
            tally, packed.grounded_centres.gather(1, lesson.kept[rows]), num_prefix
        )
        tallied = tallies[~last].mean() if (~last).any() else tallies.new_zeros(())
        return nouns, losses[last].mean(), tallied

    def _remember(self, packed: Packed, correct: Tensor) -> None:
        for item, right in zip(packed.questions, correct.tolist(), strict=True):
            self._recent[item.question.type].append(float(right))

    def _summary(self, result: StepResult) -> dict[str, str]:
        recent = [value for values in self._recent.values() for value in values]
        return {
            "loss": f"{result.answer_loss:.2f}",
            "noun": f"{result.noun_loss:.2f}",
            "right": f"{sum(recent) / len(recent):.3f}",
        }

    def _accuracies(self) -> str:
        rows = (f"{name} {sum(v) / len(v):.2f}" for name, v in self._recent.items())
        return " ".join(rows)


def tally_loss(attention_NC: Tensor, centres_NV: Tensor, num_prefix: int) -> Tensor:
    """KL in nats from attention to "the first token and every marked patch alike", one each row."""
    target = torch.zeros_like(attention_NC)
    target[:, 0] = 1.0
    target[:, num_prefix:] = centres_NV.to(target.dtype)
    target = target / target.sum(dim=1, keepdim=True)
    entropy = torch.special.xlogy(target, target).sum(dim=1)
    loss: Tensor = entropy - (target * (attention_NC + 1e-6).log()).sum(dim=1)
    return loss


def learning_rate_factor(step: int, num_steps: int, *, constant_share: float) -> float:
    """Short warm-up, constant for that share of the steps, then a cosine to nearly zero."""
    progress = step / num_steps
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    if progress < constant_share:
        return warm
    fall = 0.5 * (1 + math.cos(math.pi * (progress - constant_share) / (1 - constant_share)))
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * fall)


def answers_correct(logits: Tensor, packed: Packed) -> Tensor:
    """Per question, whether greedy decoding gives the whole first answer and then stops."""
    right = logits.argmax(-1) == packed.target_ids
    wrong = torch.zeros(len(packed.questions)).index_add_(
        0, packed.target_question, (~right).float()
    )
    return wrong == 0
