"""The question-only baseline: the best constant answer to each pattern of question.

Learned from scenes of the training split alone; no image is rendered.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean

from allrounder.demo.held_out import pick_scene
from allrounder.demo.mentions import ATTRIBUTES, SINGULAR
from allrounder.demo.questions import Question, ask_questions, score_answer
from allrounder.demo.scenes import SceneSplit

NUM_SCENES = 10_000
# So many training questions must share a pattern, or their best answer is chance.
MIN_SUPPORT = 50
# Descriptions are hardly ever equal: so many candidates are graded on so many questions.
NUM_CANDIDATES = 12
NUM_TRIED = 150
SPELLINGS = {"grey": "gray", "color": "colour", "center": "centre", "picture": "image"}
DESCRIBING = [word for word, (slot, _) in ATTRIBUTES.items() if slot in ("size", "colour")]
NOUN_PHRASE = re.compile(rf"\b(?:(?:{'|'.join(DESCRIBING)}) )*(?:{'|'.join(SINGULAR)})\b")


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A question with words of it left blank: blank -> those words."""

    key: str
    blanks: Mapping[str, str] = field(default_factory=dict)

    def blank(self, answer: str) -> str:
        text = _plain(answer)
        for name, words in self.blanks.items():
            text = re.sub(rf"\b{words}\b", name, text)
        return text

    def fill(self, answer: str) -> str:
        return re.sub(r"<\w+>", lambda match: self.blanks.get(match[0], ""), answer)


class QuestionOnly:
    """Answers from the wording alone.

    A question's patterns are its text, the text with the attributes left blank, the text with whole
    noun phrases left blank, and its type; the most specific one with support decides. Blanks are
    filled from the question, so an answer may repeat what the question told.
    """

    def __init__(self, questions: Iterable[Question]) -> None:
        """Learn from `questions`, which must not be those that are answered later."""
        groups: dict[str, list[tuple[Question, Pattern]]] = defaultdict(list)
        for question in questions:
            for pattern in _patterns(question):
                groups[pattern.key].append((question, pattern))
        self._answers = {
            key: _best_answer(group)
            for key, group in groups.items()
            if len(group) >= MIN_SUPPORT or key == group[0][0].type
        }

    def answer(self, question: Question) -> str:
        """Never looks at what is accepted. Raises LookupError for a type that was not learned."""
        known = [pattern for pattern in _patterns(question) if pattern.key in self._answers]
        return known[0].fill(self._answers[known[0].key])


def learn_question_only(
    *, num_scenes: int = NUM_SCENES, seed: int = 0, big_single: bool = False
) -> QuestionOnly:
    """From the training split, questions drawn as an exam draws them."""
    return QuestionOnly(
        question
        for index in range(num_scenes)
        for question in ask_questions(
            pick_scene(SceneSplit.TRAIN, seed, index, big_single=big_single)[0],
            Random(f"question-only-{seed}-{index}"),
            per_type=1,
        )
    )


def _patterns(question: Question) -> tuple[Pattern, ...]:
    """Most specific first; every one is of one type."""
    text = _plain(question.text)
    phrases = list(dict.fromkeys(NOUN_PHRASE.findall(text)))
    words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
    attributes = [word for word in words if word in ATTRIBUTES]
    named = {f"<{ATTRIBUTES[word][0]}{idx}>": word for idx, word in enumerate(attributes)}
    whole = {f"<phrase{idx}>": phrase for idx, phrase in enumerate(phrases)}
    blanked = (Pattern(key="", blanks=blanks) for blanks in ({}, named, whole))
    return (
        *(replace(pattern, key=f"{question.type}: {pattern.blank(text)}") for pattern in blanked),
        Pattern(key=question.type),
    )


def _plain(text: str) -> str:
    words = re.findall(r"[a-z0-9]+|,", text.lower())
    return " ".join(SPELLINGS.get(word, word) for word in words)


def _best_answer(group: Sequence[tuple[Question, Pattern]]) -> str:
    if not group[0][0].described:
        counts = Counter(
            answer
            for question, pattern in group
            for answer in dict.fromkeys(map(pattern.blank, question.answers))
        )
        return counts.most_common(1)[0][0]
    tried = group[:NUM_TRIED]
    return max(
        _candidates(group),
        key=lambda answer: fmean(score_answer(p.fill(answer), q) for q, p in tried),
    )


def _candidates(group: Sequence[tuple[Question, Pattern]]) -> list[str]:
    """The commonest descriptions, and those made of the commonest words."""
    answers = Counter(pattern.blank(question.answers[0]) for question, pattern in group)
    words: Counter[str] = Counter()
    for answer, count in answers.items():
        words.update(dict.fromkeys(answer.split(), count))
    commonness = {
        answer: fmean(words[word] for word in dict.fromkeys(answer.split())) for answer in answers
    }
    common = sorted(answers, key=lambda answer: -commonness[answer])[:NUM_CANDIDATES]
    frequent = [answer for answer, _ in answers.most_common(NUM_CANDIDATES)]
    return list(dict.fromkeys([*common, *frequent]))
