"""A request as JSON: its parts that speak of images, how to change them, and what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

SHOWN = 600
"""Characters of a value that a person is shown."""
REFERENCES, PLACES, HASHES = (f"features.{name}.image" for name in ("kwargs_data", "mm_placeholders", "mm_hashes"))

Body = dict[str, Any]


def told(body: Body) -> Body:
    """What the second image's reference says."""
    said: Body = json.loads(body["features"]["kwargs_data"]["image"][1].removeprefix("mmraw:"))
    return said


def retold(body: Body, *, own: Body | None = None, **changes: Any) -> Body:
    """The second image's reference says something else; `own` is what is below its key `filmroll`."""
    said = told(body)
    said |= changes | {"filmroll": said["filmroll"] | (own or {})}
    return with_lists(body, kwargs_data=lambda texts: [texts[0], "mmraw:" + json.dumps(said)])


def with_lists(body: Body, **changes: Callable[[list[Any]], Any]) -> Body:
    """The lists of the images in the features, each changed by a function."""
    for name, change in changes.items():
        body["features"][name]["image"] = change(body["features"][name]["image"])
    return body


def differences(good: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where a request says something else than the good one, and what."""
    if isinstance(good, dict) and isinstance(other, dict):
        for key in good | other:
            inner = f"{place}.{key}".lstrip(".")
            if key not in other:
                yield f"no {inner}"
            elif key not in good:
                yield f"{inner} = {_short(other[key])}"
            else:
                yield from differences(good[key], other[key], inner)
    elif isinstance(good, list) and isinstance(other, list) and len(good) == len(other):
        for index, pair in enumerate(zip(good, other, strict=True)):
            yield from differences(*pair, f"{place}[{index}]")
    elif good != other or type(good) is not type(other):
        yield f"{place} = {_short(other)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
