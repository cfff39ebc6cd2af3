"""Somebody sends what is not JSON, or JSON that is worse than it looks.

A parser that follows brackets by calling itself ends its process at a depth of some thousands. Numbers that are
none pass comparisons that they should fail. A key that is there twice is read one way by who checks and
another way by who acts. So what cannot be read is refused, and of two keys the same one counts everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from body import REFERENCES, retold, told
from target import Target, main
from verdict import Harmless, Outcome, Refused, Verdict, Worded

UNREAD = Refused("request", ...)
DEEP = 100_000
START = b'{"token_ids": [1], "sampling_params": {'
BODIES: dict[str, bytes] = {
    "text": b"hello",
    "nothing": b"",
    "a null byte": b"\0",
    "a list": b"[1]",
    "null": b"null",
    "cut short": START,
    "nested lists": b"[" * DEEP,
    "nested objects": b'{"a":' * DEEP,
    "nested lists, whole": b"[" * DEEP + b"]" * DEEP,
    "nested in an unknown field": b'{"token_ids": [1], "sampling_params": {}, "x": ' + b"[" * DEEP,
    "nested in the features": b'{"token_ids": [1], "sampling_params": {}, "features": ' + b'{"a":' * DEEP,
    "nested in the parameters": START + b'"logit_bias": ' + b'{"a":' * DEEP,
    "not Unicode": b'{"token_ids": "\xff\xfe", "sampling_params": {}}',
    "half of a character": b'{"token_ids": [1], "sampling_params": {}, "model": "\xe2\x82"}',
    "UTF-16": json.dumps({"token_ids": [1], "sampling_params": {}}).encode("utf-16")[:-1],
    "another number": START + b'"temperature": 0x10}}',
    "a list of holes": b'{"token_ids": [,,], "sampling_params": {}}',
    "two bodies": START + b"}}" + START + b"}}",
}
"""Which are no JSON, or no object."""

NUMBERS: dict[str, bytes] = {
    "NaN": b'"temperature": NaN',
    "Infinity": b'"temperature": Infinity',
    "a number beyond all": b'"temperature": 1e999',
    "as an integer": b'"max_tokens": 1e999',
    "NaN as an integer": b'"max_tokens": NaN',
    "a thousand digits": b'"max_tokens": ' + b"9" * 1000,
    "a hundred thousand digits": b'"seed": ' + b"9" * 100_000,
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, data in BODIES.items():
        yield target.send(name, data, UNREAD, vllm=Worded())
    for name, number in NUMBERS.items():
        yield target.send(name, START + number + b"}}", UNREAD, vllm=Worded())
    good = json.dumps(target.good())
    honest, forged = (json.dumps(body["features"]) for body in (target.good(), _forged(target)))
    for name, first, last in (("the last is forged", honest, forged), ("the first is forged", forged, honest)):
        twice = good.replace(f'"features": {honest}', f'"features": {first}, "features": {last}')
        last_counts: Verdict = Refused("grid", REFERENCES, 1) if last == forged else Harmless()
        yield target.send(f"a key twice, {name}", twice.encode(), last_counts)
    reference = target.good()["features"]["kwargs_data"]["image"][1]
    digest = told(target.good())["mm_hash"]
    doubled = reference.replace(f'"mm_hash":"{digest}"', f'"mm_hash":"{digest}","mm_hash":"{"0" * 64}"')
    body = target.good()
    body["features"]["kwargs_data"]["image"][1] = doubled
    yield target.send("a key twice in a reference", body, Refused("request", "features.mm_hashes.image", 1))
    for name, text in {
        "a reference of brackets": "mmraw:" + "[" * 16_000,
        "a reference of objects": "mmraw:" + '{"a":' * 3_000,
        "a long reference": "mmraw:" + " " * 17_000 + "{}",
        "a reference of base64 that is none": "mmraw:%%%%",
        "a reference of a version that is none": "mmraw:v9:AAAA",
    }.items():
        body["features"]["kwargs_data"]["image"][1] = text
        yield target.send(name, body, Refused("reference_format", REFERENCES, 1))
    body["features"]["kwargs_data"]["image"][1] = "mmraw:{\ud800}"
    yield target.send("half a character in a reference", body, UNREAD, vllm=Refused("reference_format", REFERENCES, 1))
    endless = START + b'"max_tokens": 1, "temperature": 0.' + b"0" * 100_000 + b"1}}"
    yield target.send("zeros without end", endless, Harmless())


def _forged(target: Target) -> dict[str, object]:
    return retold(target.good(), payload={"image_grid_thw": [[1, 2, 2]]})


if __name__ == "__main__":
    main(attack)
