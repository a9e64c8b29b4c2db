"""Encoded images by index, and their questions as prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from allrounder.core import ImageInput
from allrounder.measure.frozen import EncodedQuestion, FrozenModel
from allrounder.models.families.family import ImageFeatures
from allrounder.training.samples import ImageQuestions

BATCH_QUESTIONS = 16
_CACHE_BYTES = 1 << 30


class ImageBank:
    """Keeps the visual tokens (V x D) of the newest images, within 1 GiB; encodes others anew."""

    def __init__(self, frozen: FrozenModel, images: Sequence[ImageQuestions]) -> None:
        self.frozen = frozen
        self.images = images
        self._encoded: OrderedDict[int, tuple[ImageInput, ImageFeatures]] = OrderedDict()
        self._bytes = 0

    @property
    def num_questions(self) -> int:
        return sum(len(image.questions) for image in self.images)

    def visual(self, image_idx: int) -> Tensor:
        return self._entry(image_idx)[1].tokens_VD

    def ask(self, image_idx: int, question: str) -> EncodedQuestion:
        image, visual = self._entry(image_idx)
        return self.frozen.ask(image, visual, question)

    def batches(self) -> Iterator[list[tuple[int, EncodedQuestion]]]:
        """All questions with their image's index, some at a time, those of an image together."""
        batch: list[tuple[int, EncodedQuestion]] = []
        for idx, image in enumerate(self.images):
            batch += [(idx, self.ask(idx, question)) for question in image.questions]
            if len(batch) >= BATCH_QUESTIONS:
                yield batch
                batch = []
        if batch:
            yield batch

    def spread(self) -> Iterator[EncodedQuestion]:
        """All questions, one of every image before the next: the n-th begins with its n-th."""
        most = max((len(image.questions) for image in self.images), default=0)
        for turn in range(most):
            for idx, image in enumerate(self.images):
                count = len(image.questions)
                if turn < count:
                    yield self.ask(idx, image.questions[(idx + turn) % count])

    def _entry(self, image_idx: int) -> tuple[ImageInput, ImageFeatures]:
        if image_idx not in self._encoded:
            image = self.images[image_idx].load()
            visual = self.frozen.encode(image)
            # Only its size is asked for later.
            self._encoded[image_idx] = (replace(image, rgb=b""), visual)
            self._bytes += visual.nbytes
        while self._bytes > _CACHE_BYTES and len(self._encoded) > 1:
            _, (_, oldest) = self._encoded.popitem(last=False)
            self._bytes -= oldest.nbytes
        return self._encoded[image_idx]
