"""Encoded pictures by index, and their questions as prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from allrounder.core import ImageInput
from allrounder.models.families.family import VisualTokens
from allrounder.training.frozen import Asked, FrozenModel
from allrounder.training.samples import Picture

BATCH_QUESTIONS = 16
_CACHE_BYTES = 1 << 30


class PictureBank:
    """Keeps the visual tokens (V x D) of the newest pictures, within 1 GiB; encodes others anew."""

    def __init__(self, frozen: FrozenModel, pictures: Sequence[Picture]) -> None:
        self.frozen = frozen
        self.pictures = pictures
        self._encoded: OrderedDict[int, tuple[ImageInput, VisualTokens]] = OrderedDict()
        self._bytes = 0

    @property
    def num_questions(self) -> int:
        return sum(len(picture.questions) for picture in self.pictures)

    def visual(self, picture_idx: int) -> Tensor:
        return self._entry(picture_idx)[1].tokens_VD

    def ask(self, picture_idx: int, question: str) -> Asked:
        image, visual = self._entry(picture_idx)
        return self.frozen.ask(image, visual, question)

    def batches(self) -> Iterator[list[tuple[int, Asked]]]:
        """All questions with their picture's index, some at a time, those of a picture together."""
        batch: list[tuple[int, Asked]] = []
        for idx, picture in enumerate(self.pictures):
            batch += [(idx, self.ask(idx, question)) for question in picture.questions]
            if len(batch) >= BATCH_QUESTIONS:
                yield batch
                batch = []
        if batch:
            yield batch

    def spread(self) -> Iterator[Asked]:
        """All questions, one of every picture before the next: the n-th begins with its n-th."""
        most = max((len(picture.questions) for picture in self.pictures), default=0)
        for turn in range(most):
            for idx, picture in enumerate(self.pictures):
                count = len(picture.questions)
                if turn < count:
                    yield self.ask(idx, picture.questions[(idx + turn) % count])

    def _entry(self, picture_idx: int) -> tuple[ImageInput, VisualTokens]:
        if picture_idx not in self._encoded:
            image = self.pictures[picture_idx].load()
            visual = self.frozen.encode(image)
            # Only its size is asked for later.
            self._encoded[picture_idx] = (replace(image, rgb=b""), visual)
            self._bytes += visual.nbytes
        while self._bytes > _CACHE_BYTES and len(self._encoded) > 1:
            _, (_, oldest) = self._encoded.popitem(last=False)
            self._bytes -= oldest.nbytes
        return self._encoded[picture_idx]
