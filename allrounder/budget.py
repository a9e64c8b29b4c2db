"""The `budget` field -> core.BudgetRequest. Knows the forms' shapes, not what a model can do.

To add a form: a wire model here with its conversion, and its keys in `FORM_OF_KEY`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from allrounder.core import BudgetRequest
from allrounder.core.budget import FORMS, FORMS_NOT_YET, Budget, Counts, FlopsShare, Quality
from allrounder.errors import InvalidField
from allrounder.validation import WireModel, validate

MAX_KNOBS = 32
MAX_KNOB_CHARS = 256
MAX_COUNT = 2**31 - 1


def _knob(value: Any) -> Any:
    if isinstance(value, bool | int) and abs(value) <= MAX_COUNT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= MAX_KNOB_CHARS and value.isprintable():
        return value
    raise PydanticCustomError("knob", "must be a finite number, a boolean or a short string")


Name = Annotated[str, Field(min_length=1, max_length=64)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Knobs = Annotated[dict[Name, Annotated[Any, AfterValidator(_knob)]], Field(max_length=MAX_KNOBS)]


class Options(WireModel):
    """What may stand beside any object form."""

    strategy: Name | None = None
    options: Knobs = Field(default_factory=dict)
    min_tokens: Count = 1


class FlopsForm(Options):
    flops: Share

    def form(self) -> Budget:
        return FlopsShare(share=self.flops)


class CountsForm(Options):
    tokens: Count | None = None
    layers: Count | None = None

    def form(self) -> Budget:
        return Counts(tokens=self.tokens, layers=self.layers)


class QualityForm(Options):
    """The cheapest plan of which a calibration expects at least this share of dense answers."""

    quality: Share

    def form(self) -> Budget:
        return Quality(loyalty=self.quality)


FORM_OF_KEY: Mapping[str, type[FlopsForm] | type[CountsForm] | type[QualityForm]] = {
    "flops": FlopsForm,
    "tokens": CountsForm,
    "layers": CountsForm,
    "quality": QualityForm,
}

_NUMBER_SCHEMA = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
BUDGET_SCHEMA: dict[str, Any] = {
    "description": "Share of dense prefill compute, or one of the object forms.",
    "anyOf": [
        _NUMBER_SCHEMA,
        FlopsForm.model_json_schema(),
        CountsForm.model_json_schema(),
        QualityForm.model_json_schema(),
    ],
}


def parse_budget(value: Any) -> BudgetRequest:
    """Raises InvalidField naming the part that is wrong: `budget`, `budget.tokens`, ..."""
    if isinstance(value, Mapping):
        return _parse_object(value)
    if isinstance(value, str):
        raise _refused(value, "budget")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong("must be a number or an object")
    if not 0 < value <= 1:
        raise _wrong("the share must be greater than 0 and at most 1")
    return BudgetRequest(form=FlopsShare(share=float(value)), requested=value)


def _parse_object(body: Mapping[str, Any]) -> BudgetRequest:
    given = {key: value for key, value in body.items() if value is not None}
    forms = {key: FORM_OF_KEY.get(key) for key in given if key in FORM_OF_KEY}
    later = [key for key in given if key in FORMS_NOT_YET]
    if len(set(forms.values())) + len(later) > 1:
        raise _wrong("only one form at a time may be given")
    if later:
        raise _refused(later[0], f"budget.{later[0]}")
    wire = next(iter(forms.values()), None)
    if wire is None:
        validate(Options, given, prefix="budget")
        raise _wrong("no form was given")
    checked = validate(wire, given, prefix="budget")
    return BudgetRequest(
        form=checked.form(),
        requested=given,
        strategy=checked.strategy,
        options=checked.options,
        min_tokens=checked.min_tokens,
    )


def _wrong(text: str) -> InvalidField:
    return InvalidField(f"budget: {text}; forms: {', '.join(FORMS)}", param="budget")


def _refused(name: str, param: str) -> InvalidField:
    known = name in FORMS_NOT_YET
    text = f'the form "{name}" does not exist yet' if known else "unknown form"
    return InvalidField(f"{param}: {text}; forms: {', '.join(FORMS)}", param=param)
