"""A model folder's processor for still images; its video half would need torchvision."""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.video_processing_utils import VideoProcessorMixin

from allrounder.errors import ModelUnsupported


def load_processor(source: str, config: PreTrainedConfig, **local: Any) -> Any:
    """The processor in the folder or repository `source`.

    Args:
        config: the model's configuration: its type names the processor's class.
        local: what `from_pretrained` may reach; passed on.
    Raises:
        ModelUnsupported: a package is missing that the processor needs.
    """
    kind = PROCESSOR_MAPPING.get(type(config), None)
    try:
        if kind is None or "video_processor" not in kind.get_attributes():
            whole: Any = AutoProcessor
            return whole.from_pretrained(source, **local)
        settings, _ = kind.get_processor_dict(source, **local)
        loaded = {
            "image_processor": lambda: AutoImageProcessor.from_pretrained(source, **local),
            "tokenizer": lambda: AutoTokenizer.from_pretrained(source, **local),
            # SmolVLM's processor reads the two when it renders the chat template.
            "video_processor": lambda: VideoProcessorMixin(num_frames=None, fps=None),
        }
        parts = [loaded[attribute]() for attribute in kind.get_attributes()]
        return _without_video(kind).from_args_and_dict(parts, settings)
    except ImportError as err:
        raise ModelUnsupported(f"the processor of {config.model_type!r}: {err}") from err


def _without_video(kind: Any) -> Any:
    """That class, content with any video processor: the library's check needs torchvision too."""

    def check(self: Any, attribute: str, argument: Any) -> Any:
        if attribute == "video_processor":
            return type(argument)
        return kind.check_argument_for_proper_class(self, attribute, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
