"""Somebody sends more than anybody needs: bodies, lists, texts, numbers of images.

Each costs the server memory and time before it is known to be useless, and an error that repeats what it was
sent costs it twice. So lengths are looked at before contents, and refusals are short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from body import REFERENCES, Body, retold, told, with_lists
from target import Target, main
from verdict import Harmless, Outcome, Refused, Verdict, Worded

MIB = 1 << 20
LONGEST_REFUSAL = 10_000
"""Characters: what a refusal says does not grow with what was sent."""
ANY = Refused(("request", "reference_format", "placement", "prompt_too_long"), ...)

LARGE: dict[str, tuple[Callable[[Body], Any], Verdict, Verdict | None]] = {
    "a million tokens": (lambda body: body.update(token_ids=[1] * MIB), Refused("request", ...), None),
    "two million tokens": (lambda body: body.update(token_ids=[1] * 2 * MIB), Refused("request", ...), None),
    "5 MiB in a field that nobody knows": (lambda body: body.update(x="x" * 5 * MIB), Harmless(), None),
    "a model's name of 1 MiB": (lambda body: body.update(model="x" * MIB), Refused("request", "model"), Worded()),
    "a request id of 1 MiB": (
        lambda body: body.update(request_id="x" * MIB),
        Refused("request", "request_id"),
        Harmless(),
    ),
    "a modality of 1 MiB": (
        lambda body: body.update(
            features={name: {"x" * MIB: lists["image"]} for name, lists in body["features"].items()}
        ),
        Refused("request", "features.mm_hashes"),
        None,
    ),
    "100,000 modalities": (
        lambda body: body.update(features={name: {str(n): [] for n in range(100_000)} for name in body["features"]}),
        Refused("request", "features.mm_hashes"),
        Harmless(),
    ),
    "a hash of 1 MiB": (
        lambda body: with_lists(body, mm_hashes=lambda hashes: [hashes[0], "0" * MIB]),
        Refused("request", "features.mm_hashes.image", 1),
        None,
    ),
    "a million stop tokens": (
        lambda body: body["sampling_params"].update(stop_token_ids=[1] * MIB),
        Refused("request", "sampling_params.stop_token_ids"),
        Harmless(),
    ),
    "a reference of 5 MiB": (
        lambda body: retold(body, raw_image_uri="file:///" + "x" * 5 * MIB),
        Refused("reference_format", REFERENCES, 1),
        None,
    ),
    "a family of 1 MiB": (
        lambda body: retold(body, family="x" * MIB),
        Refused("reference_format", REFERENCES, 1),
        None,
    ),
    "a payload of 5,000 grids": (
        lambda body: retold(body, payload={f"g{n}": [[1, 1, 1]] for n in range(5_000)}),
        Refused("reference_format", REFERENCES, 1),
        None,
    ),
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, (change, right, vllm) in LARGE.items():
        body = target.good()
        change(body)
        outcome = target.send(name, body, right, vllm=vllm)
        # What vLLM says in its own words may repeat a model's name.
        yield outcome if target.is_vllm and isinstance(vllm, Worded) else _short(outcome)
    for mebibytes in (9, 70):
        name = f"{mebibytes} MiB of spaces"
        yield _short(target.send(name, b" " * mebibytes * MIB, Refused("request", None, status=413), vllm=Worded()))
    yield _short(target.send("5,000 references", _many(target, 5_000), ANY))
    yield _short(
        target.send("a data: URI of 6 MiB", _inline(target, 6 * MIB), Refused("reference_format", REFERENCES, 1))
    )
    yield _short(target.send("a data: URI of zeros", _inline(target, 3 * MIB), Refused("image_damaged", REFERENCES, 1)))


def _many(target: Target, count: int) -> Body:
    """As many images in one prompt, each of them good."""
    body = target.good()
    one = body["features"]["mm_placeholders"]["image"][0]
    piece = [0, *body["token_ids"][one["offset"] : one["offset"] + one["length"]]]
    body["token_ids"] = piece * count
    return with_lists(
        body,
        mm_hashes=lambda hashes: hashes[:1] * count,
        kwargs_data=lambda texts: texts[:1] * count,
        mm_placeholders=lambda spans: [spans[0] | {"offset": 1 + len(piece) * n} for n in range(count)],
    )


def _inline(target: Target, characters: int) -> Body:
    nbytes = characters // 4 * 3
    return retold(
        target.good(),
        raw_image_uri="data:image/png;base64," + "A" * characters,
        own=told(target.good())["filmroll"] | {"nbytes": nbytes},
    )


def _short(outcome: Outcome) -> Outcome:
    length = len(outcome.answer.text)
    long = outcome.answer.status != 200 and length > LONGEST_REFUSAL
    wrong = outcome.wrong or (f"its refusal has {length:,} characters" if long else "")
    return Outcome(outcome.name, outcome.sent, outcome.answer, wrong)


if __name__ == "__main__":
    main(attack)
