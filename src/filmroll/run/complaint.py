"""What is wrong with a configuration, in words for whoever wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KINDS = {"environment": "name", "engine": "kind"}
"""Sections of several kinds, and the field that says of which one is."""
_TABLES = {"dict_type", "model_type", "model_attributes_type"}
_SHOWN = 80
"""Most characters of a value that are repeated."""


def complaint(error: ValidationError) -> str:
    """Every field that is wrong, what it must be, and what it is."""
    return "; ".join(map(_complaint, error.errors()))


def _complaint(wrong: ErrorDetails) -> str:
    place, context, type_ = list(map(str, wrong["loc"])), wrong.get("ctx", {}), wrong["type"]
    field_of_kind = _KINDS.get(place[0], "") if place else ""
    kind = place.pop(1) if field_of_kind and len(place) > 1 else ""
    field = ".".join(place)
    if type_ == "value_error":
        return f"{field}: {context['error']}" if field else str(context["error"])
    if type_ == "missing":
        return f"{field} is missing"
    if type_ == "extra_forbidden":
        what = "section" if len(place) == 1 and isinstance(wrong["input"], dict) else "field"
        return f"{field}: there is no such {what}" + (f" where {place[0]}.{field_of_kind} is {kind!r}" if kind else "")
    if type_ == "union_tag_invalid":
        return f"{field}.{field_of_kind} must be one of {context['expected_tags']}, not {context['tag']!r}"
    value = repr(wrong["input"])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    said = "be a table" if type_ in _TABLES else _said(wrong["msg"])
    return f"{field} must {said}, not {shown}"


def _said(message: str) -> str:
    """What pydantic says that a value should be, without its reason for saying so."""
    return message.partition(" should ")[2].partition(", ")[0] or message
