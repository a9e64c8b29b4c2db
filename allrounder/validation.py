"""Pydantic errors -> the one typed error of a wrong field. Never echoes what the caller sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from allrounder.errors import InvalidField

MAX_PARAM_CHARS = 128

Model = TypeVar("Model", bound="WireModel")


@dataclass(frozen=True, slots=True)
class Only:
    """The annotation that `only` returns."""

    values: tuple[Any, ...]

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self.values)}

    def _check(self, given: Any) -> Any:
        if any(given == value and _alike(given, value) for value in self.values):
            return given
        served = " or ".join(json.dumps(value) for value in self.values)
        raise PydanticCustomError("only", "only {served} is supported here", {"served": served})


def _alike(given: Any, value: Any) -> bool:
    """JSON knows numbers and booleans apart, Python does not."""
    return isinstance(given, bool) == isinstance(value, bool)


class WireModel(BaseModel):
    """Base of all wire schemas: nothing unknown, nothing coerced, nothing infinite."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True
    )


def only(*values: Any) -> Only:
    """Annotates a field that accepts only these values."""
    return Only(values)


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
