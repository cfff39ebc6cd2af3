"""Somebody sends tokens that are none, or placeholder tokens that belong to no image.

A prompt with placeholders and no image has crashed vLLM's model worker (CVE-2026-44222); where it does not,
the model answers blindly and nobody notices. An image whose tokens are missing is a feature too many.
Ids outside the vocabulary read beyond the embedding. So every placeholder has its image, every image its
placeholder, and every id is one of the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from body import PLACES, Body
from target import Target, main
from verdict import Harmless, Outcome, Refused, Verdict, Worded


def tokens(change: Callable[[list[Any]], Any]) -> Callable[[Body], Any]:
    return lambda body: body.update(token_ids=change(body["token_ids"]))


ODD: dict[str, tuple[Callable[[Body], Any], Verdict, Verdict | None]] = {
    "none": (tokens(lambda _: []), Refused("request", "token_ids"), None),
    "null": (tokens(lambda _: None), Refused("request", "token_ids"), None),
    "text": (tokens(lambda _: "hello"), Refused("request", "token_ids"), None),
    "an object": (tokens(lambda _: {"0": 1}), Refused("request", "token_ids"), None),
    "a negative one": (tokens(lambda ids: [-1, *ids[1:]]), Refused("request", "token_ids[0]"), None),
    "half of one": (tokens(lambda ids: [0.5, *ids[1:]]), Refused("request", "token_ids[0]"), None),
    "True": (tokens(lambda ids: [True, *ids[1:]]), Refused("request", "token_ids[0]"), Harmless()),
    "None among them": (tokens(lambda ids: [None, *ids[1:]]), Refused("request", "token_ids[0]"), None),
    "a list among them": (tokens(lambda ids: [[1], *ids[1:]]), Refused("request", "token_ids[0]"), None),
    "beyond the vocabulary": (
        tokens(lambda ids: [10**6, *ids[1:]]),
        Refused("request", "token_ids"),
        Worded("out of vocabulary"),
    ),
    "of 31 bits": (
        tokens(lambda ids: [2**31 - 1, *ids[1:]]),
        Refused("request", "token_ids"),
        Worded("out of vocabulary"),
    ),
    "of 70 bits": (tokens(lambda ids: [2**70, *ids[1:]]), Refused("request", "token_ids[0]"), None),
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, (change, right, vllm) in ODD.items():
        body = target.good()
        change(body)
        yield target.send(f"tokens: {name}", body, right, vllm=vllm)
    pad = target.family.placeholders.image
    body = target.good()
    del body["features"]
    yield target.send("placeholders and no image", body, Refused("placement", "token_ids"))
    first = target.good()["features"]["mm_placeholders"]["image"][0]["offset"]
    for name, (place, token, right) in {
        "a placeholder too many": (0, pad, Refused("placement", PLACES)),
        "a placeholder too few": (first, 0, Refused("placement", PLACES, 0)),
        "a video's placeholder among them": (first, _other(target), Refused("placement", PLACES, 0)),
    }.items():
        body = target.good()
        body["token_ids"][place] = token
        yield target.send(name, body, right)
    body = target.good()
    body["token_ids"] = [0 if token == pad else token for token in body["token_ids"]]
    yield target.send("images and no placeholder", body, Refused("placement", PLACES, 0))
    body = target.good()
    body["token_ids"] += [1] * target.max_model_len
    yield target.send("more than the model takes", body, Refused("request", "token_ids"))


def _other(target: Target) -> int:
    """A token of vision that is not an image's."""
    return next(one for one in target.family.placeholders.unsampled if one != target.family.placeholders.image)


if __name__ == "__main__":
    main(attack)
