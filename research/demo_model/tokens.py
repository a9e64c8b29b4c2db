"""The tokenizer, chat template and processor of the model, and token ids of prompt segments.

A prompt is one shared image prefix followed by one question; both are tokenised as the processor
would tokenise the whole rendered prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from allrounder.demo.questions import Question, ask_questions
from allrounder.demo.scenes import (
    IMAGE_SIZE,
    NUM_PATCHES,
    PATCH_SIZE,
    SceneSplit,
    draw_scene,
    scene_rng,
)
from research.demo_model.general_english import GENERAL_ENGLISH
from research.demo_model.lvlm import MAX_POSITIONS, PIXEL_MEAN, PIXEL_STD

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
SPECIALS = (PAD, BOS, EOS, IMAGE)
VOCAB_SIZE = 1024
PREFIX = f"{BOS}USER: "
QUESTION = "\n{question} ASSISTANT:"
# Images come first whatever their place among the parts, as the model saw them in training.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} ASSISTANT: {% else %}USER: {% endif %}"
    "{% if message['content'] is string %}"
    "{% if message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% if message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class TokenisedQuestion:
    """Ids of the question segment and of the answer with its end mark.

    `nouns` holds, per noun phrase, the index of its head noun's last token within `prompt`.
    """

    question: Question
    prompt: list[int]
    answer: list[int]
    nouns: list[int]


def train_tokenizer(seed: int, num_scenes: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on questions, answers and a little general English."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, num_scenes), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Any image is scaled to the full 224 x 224 input, so that nothing of it is cut away."""
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def prefix_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids in front of the visual tokens."""
    ids: list[int] = tokenizer.encode(PREFIX, add_special_tokens=False)
    return ids


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """Ids of a whole prompt, the image expanded to its 196 placeholders."""
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    segment = tokenizer.encode(QUESTION.format(question=question), add_special_tokens=False)
    return [*prefix_ids(tokenizer), *[image_id] * NUM_PATCHES, *segment]


def tokenise(
    tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]
) -> list[TokenisedQuestion]:
    """Token ids of many questions and their first answers."""
    backend = tokenizer.backend_tokenizer
    prompts = backend.encode_batch(
        [QUESTION.format(question=q.text) for q in questions], add_special_tokens=False
    )
    answers = backend.encode_batch(
        [f" {q.answers[0]}{EOS}" for q in questions], add_special_tokens=False
    )
    offset = QUESTION.index("{")
    rows = []
    for question, prompt, answer in zip(questions, prompts, answers, strict=True):
        nouns = [prompt.char_to_token(p.end - 1 + offset) for p in question.phrases]
        rows.append(
            TokenisedQuestion(question=question, prompt=prompt.ids, answer=answer.ids, nouns=nouns)
        )
    return rows


def word_ids(tokenizer: PreTrainedTokenizerFast, word: str) -> list[int]:
    """Every single token that spells this word: with a space or capital, plural, or British."""
    spellings = {"gray": ("gray", "grey"), "center": ("center", "centre")}.get(word, (word,))
    plurals = [f"{s}{ending}" for s in spellings for ending in ("s", "es")]
    forms = [v for s in (*spellings, *plurals) for v in (s, s.capitalize())]
    encoded = [
        tokenizer.encode(lead + f, add_special_tokens=False) for f in forms for lead in (" ", "")
    ]
    return [ids[0] for ids in encoded if len(ids) == 1]


def _corpus(seed: int, num_scenes: int) -> Iterator[str]:
    return chain(_scene_texts(seed, num_scenes), GENERAL_ENGLISH)


def _scene_texts(seed: int, num_scenes: int) -> Iterable[str]:
    for index in range(num_scenes):
        scene = draw_scene(scene_rng(SceneSplit.TRAIN, seed, index))
        for question in ask_questions(scene, Random(index)):
            prompt = QUESTION.format(question=question.text)
            yield from (f"USER: {prompt} {answer}" for answer in question.answers)
