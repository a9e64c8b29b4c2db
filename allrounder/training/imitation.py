"""What the frozen model itself looks at when it reads a question: the router's first lesson.

Looking is cheap, as nothing is generated and no action is tried, so many more questions can be had
than preferences.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from allrounder.training.bank import PictureBank
from allrounder.training.gaze import can_share, gaze
from allrounder.training.look import Look


@dataclass(frozen=True, kw_only=True)
class Glance:
    """One question and the frozen model's own attention over the V visual tokens, summing to 1."""

    picture_idx: int
    question_ids: tuple[int, ...]
    target_V: Tensor


def watch(bank: PictureBank, look: Look) -> list[Glance]:
    """One glance for every question of the bank."""
    glances: list[Glance] = []
    with tqdm(total=bank.num_questions, desc="glances", unit="question") as bar:
        for picture_idx, picture in enumerate(bank.pictures):
            asked = [bank.ask(picture_idx, question) for question in picture.questions]
            groups = [asked] if can_share(asked) else [[one] for one in asked]
            for group in groups:
                for one, rows_HQV in zip(
                    group, gaze(bank.frozen, group, look.layer_idx), strict=True
                ):
                    start, count = one.prompt.question_slot
                    glances.append(
                        Glance(
                            picture_idx=picture_idx,
                            question_ids=one.prompt.token_ids[start : start + count],
                            target_V=look.map(rows_HQV),
                        )
                    )
            bar.update(len(asked))
    return glances
