"""Somebody changes a good request at random, one field after another, until something gives.

What nobody thought of is found so: values of other types, numbers beyond bounds, fields that are missing, doubled
or in another's place, in the request and in the references inside it. Whatever is sent, the answer is
structured and short, and the server goes on as before.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

from body import Body
from target import Target, main
from verdict import Answer, Outcome

COUNT = 5_000
SLICE = 500
"""Without a full count, so many."""
LONGEST_REFUSAL = 10_000
REFERENCE = "mmraw:"

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2**24, 2**31, 2**63, 2**70, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x" * 5_000, "\ud800", "\0", "é" * 9, "1", "null", [], [[]], [None], [[1, 2]], {}, {"a": {}}, {"": 0}, [0] * 2_000,
    "mmraw:{}", "mmraw:", "mmfile:v1:a:b:c:d", "file:///etc/passwd", "../" * 9, "http://127.0.0.1:1/",
    "data:image/png;base64,AAAA", "ab" * 32, "0" * 64, {"offset": 0, "length": 1}, [[1, 16, 16]], {"pixel_values": [1]},
]  # fmt: skip
OPTIONAL = (
    "content_parts", "cache_salt", "priority", "stream", "stream_options", "request_id", "return_token_ids",
    "output_mode", "kv_transfer_params", "token_offsets", "reasoning_ended", "features.mm_metadata",
    "sampling_params.n", "sampling_params.stop", "sampling_params.min_tokens", "sampling_params.logit_bias",
    "sampling_params.bad_words", "sampling_params.allowed_token_ids", "sampling_params.prompt_logprobs",
    "sampling_params.structured_outputs", "sampling_params.presence_penalty", "sampling_params.min_p",
    "sampling_params.detokenize",
)  # fmt: skip
"""Fields that a good request leaves out."""

Place = tuple[str | int, ...]


class Unharmed:
    """Right is any answer that is structured and no failure."""

    def wrong(self, answer: Answer) -> str:
        if answer.status == 200:
            return ""
        if not 400 <= answer.status < 500:
            return "the server fails"
        if not (answer.error.get("message") or "detail" in answer.text):
            return "its refusal is not structured"
        return "" if len(answer.text) <= LONGEST_REFUSAL else f"its refusal has {len(answer.text):,} characters"


def attack(target: Target) -> Iterator[Outcome]:
    count = COUNT if target.thorough else SLICE
    good = _opened(target.good())
    fields = sorted({_field(place) for place in _places(good)} | set(OPTIONAL))

    def attempt(number: int) -> Outcome:
        body = _closed(mutated(good, fields[number % len(fields)], Random(number)))
        return target.send(f"mutation {number}", body, Unharmed(), check=False)

    yield from target.together(attempt, count)


def mutated(good: Body, field: str, random: Random) -> Body:
    """The good request, changed at this field, and now and then at others."""
    body = copy.deepcopy(good)
    places = [place for place in _places(body) if _field(place) == field] or [tuple(field.split("."))]
    _change(body, random.choice(places), random)
    while random.random() < 0.3:
        _change(body, random.choice(list(_places(body)) or [("x",)]), random)
    return body


def _change(body: Body, place: Place, random: Random) -> None:
    holder: Any = body
    for step in place[:-1]:
        holder = holder[step]
    last = place[-1]
    there = isinstance(holder, list) or last in holder
    what = random.randrange(5) if there else 0
    if what == 1:
        del holder[last]
    elif what == 2 and isinstance(holder, list):
        holder.insert(int(last), copy.deepcopy(holder[int(last)]))
    elif what == 2:
        holder[random.choice(("x", "", "pixel_values", "image_grid_thw", "é" * 99))] = holder[last]
    elif what == 3:
        other = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[last], holder[other] = holder[other], holder[last]
    elif what == 4:
        holder[last] = _near(holder[last], random)
    else:
        holder[last] = copy.deepcopy(random.choice(VALUES))


def _near(value: Any, random: Random) -> Any:
    """A value of the same type that is almost the same."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, -value, 2 * value + 1, float(value), str(value)))
    if isinstance(value, float):
        return random.choice((-value, value + 1e-12, str(value), int(value)))
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        return (
            value[:at] + random.choice(("", "x", "\0", "%2e", "/../", value[:99])) + value[at + random.randrange(2) :]
        )
    if isinstance(value, list):
        return random.choice((value[::-1], value[1:], value + value, [value], dict(enumerate(map(str, value)))))
    return [list(pair) for pair in value.items()]


def _opened(body: Body) -> Body:
    """The request with its references as objects, whose fields can be changed, too."""
    texts = body["features"]["kwargs_data"]["image"]
    body["features"]["kwargs_data"]["image"] = [{REFERENCE: json.loads(text.removeprefix(REFERENCE))} for text in texts]
    return body


def _closed(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) == [REFERENCE]:
            return REFERENCE + json.dumps(value[REFERENCE], separators=(",", ":"))
        return {str(key): _closed(inner) for key, inner in value.items()}
    return [_closed(inner) for inner in value] if isinstance(value, list) else value


def _places(value: Any, above: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*above, key)
            yield from _places(inner, (*above, key))


def _field(place: Place) -> str:
    """A place's name, the same for each item of a list."""
    return re.sub(r"\.\d+", "[]", ".".join(map(str, place)))


if __name__ == "__main__":
    main(attack)
