"""What an answer says: yes or no, an option's letter, or words fit to be compared.

Every function takes any text and never raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
ONE_WORD = "Answer the question using a single word or phrase."
ONE_LETTER = "Answer with the option's letter from the given choices directly."
ONE_LETTER_CN = "请直接回答选项字母。"
YES_OR_NO = "Please answer yes or no."

_ALONE = re.compile(r"[(\[]?([A-Ja-j])[)\]]?[.:,]?")
_LEADING = re.compile(r"(?:[(\[]([A-J])[)\]][.:]?|([A-J])[.:)])(?:\s|$)|([A-J])\n")
_STATED = re.compile(r"\b[Aa]nswer(?: is|:)\s*(?:[Oo]ption )?\(?([A-J])\b\)?(?!')")
_SUFFIXES = (ONE_WORD, ONE_LETTER, ONE_LETTER_CN, YES_OR_NO)


def _words(text: str) -> list[str]:
    return text.split()


# The normalisation of VQA's evaluation server, as M4C and LLaVA apply it to TextVQA.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = _words("""
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
    wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
    who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""")
_TWICE_CONTRACTED = _words("""
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll
    y'all'd've you'd've
""")


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED} | {
    spelt: word for word in _TWICE_CONTRACTED for spelt in _without_one_apostrophe(word)
}


def pope_says(text: str) -> str | None:
    """POPE's rule: "no" where the first sentence has the word No, no or not, else "yes".

    Sentences end at a full stop, commas are dropped, words are parted by spaces. An answer without
    any word says nothing (None), where the published script takes it for a yes.
    """
    if not text.strip():
        return None
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def mme_says(text: str) -> str | None:
    """MME's rule: what is found in the first four characters, "yes" before "no"; None: neither."""
    head = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in head), None)


def option_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter chosen, None where it cannot be told or is past the last choice.

    LLaVA's conventions, which take "A", "A. text" and "The answer is A", widened by "(A)", "A)",
    "A:", "Answer: A" and a choice spelt out in full. Two different letters stated: None.
    """
    answer = text.strip()
    found = _letters(answer)
    if not found and answer:
        spelt = _plain(answer)
        found = {LETTERS[n] for n, choice in enumerate(choices[:10]) if _plain(choice) == spelt}
    if len(found) != 1:
        return None
    letter = found.pop()
    return letter if LETTERS.index(letter) < len(choices) else None


def _letters(answer: str) -> set[str]:
    if alone := _ALONE.fullmatch(answer):
        return {alone[1].upper()}
    if leading := _LEADING.match(answer):
        return {leading[1] or leading[2] or leading[3]}
    return set(_STATED.findall(answer))


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()


def exact_words(text: str) -> str:
    """GQA's comparison form: lower case, without the last full stop."""
    return text.strip().rstrip(".").strip().lower()


def vqa_words(text: str) -> str:
    """The comparison form of VQA accuracy: no articles or punctuation, digits for numbers."""
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    words = words.replace("\n", " ").replace("\t", " ").strip()
    bare = words
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in words or f" {sign}" in words
        bare = bare.replace(sign, "" if beside_space else " ")
    spoken = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", bare).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in spoken if word not in _ARTICLES)


def vqa_accuracy(text: str, references: Sequence[str]) -> float:
    """Mean over the references left out one at a time of min(1, matches among the others / 3).

    Agrawal et al., VQA (arXiv 1505.00468); ten references a question.
    """
    said = vqa_words(text)
    same = [vqa_words(reference) == said for reference in references]
    if not said or not same:
        return 0.0
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(same)


def bare_question(text: str) -> str:
    """A question to be joined by: without the usual instructions, case and spacing."""
    for suffix in _SUFFIXES:
        text = text.replace(suffix, "")
    return " ".join(text.split()).casefold()
