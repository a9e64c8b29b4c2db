"""Pydantic errors -> the one typed error of a wrong field. Never echoes what the caller sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from app.errors import InvalidField, InvalidParameter

MAX_PARAM_CHARS = 128

Model = TypeVar("Model", bound="WireModel")


class WireModel(BaseModel):
    """Base of all wire schemas: nothing unknown, nothing coerced, nothing infinite."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True
    )


def validate(model: type[Model], body: Mapping[str, Any], *, prefix: str = "") -> Model:
    """Check `body`; a null is the same as a field left out. Raises InvalidField."""
    given = {
        key: value
        for key, value in body.items()
        if value is not None or key not in model.model_fields
    }
    try:
        return model.model_validate(given)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join([*([prefix] if prefix else []), *map(str, first["loc"])])
        param = param[:MAX_PARAM_CHARS] or "body"
        raise InvalidField(f"{param}: {_text(first, model)}", param=param) from None


def validate_openai(model: type[Model], body: Mapping[str, Any]) -> Model:
    """As `validate`, for OpenAI's endpoints: raises InvalidParameter, a 400."""
    try:
        return validate(model, body)
    except InvalidField as err:
        raise InvalidParameter(err.message, param=err.param) from None


def _text(error: ErrorDetails, model: type[BaseModel]) -> str:
    match error["type"]:
        case "missing":
            return "this field is required"
        case "extra_forbidden" | "invalid_key":
            return "unknown field; known: " + ", ".join(sorted(model.model_fields))
        case "string_unicode":
            return "the text is not valid Unicode"
        case _:
            text = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
            return f"the value {text}" if text != error["msg"] and text[:6] == "should" else text
