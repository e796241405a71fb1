"""Model facts as they were stored, by whatever version of Moorage: nothing of them is believed unchecked."""

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from moorage.sizing.errors import HeaderError
from moorage.sizing.limits import MAX_BYTES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST: Final = 2 * MAX_BYTES
"""No number of a model is larger: tied embeddings count twice, and sizes may be rounded up."""


S = TypeVar("S", bound="DataclassInstance")


def parse(text: str) -> dict[str, Any]:
    """The JSON object in `text`; raises HeaderError where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the stored model facts are no JSON: {error}") from error
    if not isinstance(found, dict):
        raise HeaderError("the stored model facts are no JSON object")
    return found


def checked(model: S) -> S:
    """`model`, if each of its numbers, flags and texts is one; raises HeaderError otherwise."""
    for field in fields(model):
        value = getattr(model, field.name)
        if not _possible(value, field.type):
            raise HeaderError(f"the stored model facts say {field.name}: {str(value)[:40]!r}")
    return model


def _possible(value: object, wanted: object) -> bool:
    if wanted is int:
        return type(value) is int and 0 <= value <= MOST
    if wanted in (bool, str):
        return type(value) is wanted
    if wanted == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return True  # the kinds of layers and the confidence were read by their own types
