"""Somebody says that an image's placeholder tokens are elsewhere than they are.

Placements that overlap have an engine write the features of one image over those of another
(PYSEC-2026-4353); those beyond the prompt have it write where no token is; two that touch look like one
image to a model that finds images by runs of placeholder tokens. So placements are refused unless they
are exactly the placeholder tokens of the prompt, in the order of the images, with a token between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from body import PLACES, Body, with_lists
from target import Target, main
from verdict import Outcome, Refused

Spans = list[dict[str, Any]]


def moved(**by: int) -> Callable[[Spans], Spans]:
    return lambda spans: [spans[0], {name: value + by.get(name, 0) for name, value in spans[1].items()}]


def second(**values: Any) -> Callable[[Spans], Spans]:
    return lambda spans: [spans[0], spans[1] | values]


MISPLACED: dict[str, tuple[Callable[[Spans], Any], Refused]] = {
    "one token late": (moved(offset=1), Refused("placement", PLACES)),
    "one token early": (moved(offset=-1), Refused("placement", PLACES, 1)),
    "a token short": (moved(length=-1), Refused("request", PLACES, 1)),
    "a token long": (moved(length=1), Refused("request", PLACES, 1)),
    "the same place twice": (
        lambda spans: [spans[0], spans[1] | {"offset": spans[0]["offset"]}],
        Refused("request", PLACES, 1),
    ),
    "half over the other": (
        lambda spans: [spans[0], spans[1] | {"offset": spans[0]["offset"] + 1}],
        Refused("request", PLACES, 1),
    ),
    "in another order": (lambda spans: spans[::-1], Refused("request", PLACES, 1)),
    "beyond the prompt": (moved(offset=1000), Refused("request", PLACES, 1)),
    "over the prompt's end": (moved(length=1000), Refused("request", PLACES, 1)),
    "a huge offset": (
        second(offset=2**63),
        Refused("request", "features.mm_placeholders[...][1].offset", 1),
    ),
    "a huge length": (
        second(length=10**30),
        Refused("request", "features.mm_placeholders[...][1].length", 1),
    ),
    "a negative offset": (
        second(offset=-1),
        Refused("request", "features.mm_placeholders[...][1].offset", 1),
    ),
    "no length": (
        second(length=0),
        Refused("request", "features.mm_placeholders[...][1].length", 1),
    ),
    "a negative length": (
        second(length=-6),
        Refused("request", "features.mm_placeholders[...][1].length", 1),
    ),
    "half a token": (
        second(offset=0.5),
        Refused("request", "features.mm_placeholders[...][1].offset", 1),
    ),
    "None": (
        lambda spans: [spans[0], None],
        Refused("request", "features.mm_placeholders[...][1]", 1),
    ),
    "pairs": (
        lambda spans: [[span["offset"], span["length"]] for span in spans],
        Refused("request", "features.mm_placeholders[...][0]", 0),
    ),
    "an empty one": (
        lambda spans: [spans[0], {}],
        Refused("request", "features.mm_placeholders[...][1]", 1),
    ),
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, (change, right) in MISPLACED.items():
        yield target.send(name, with_lists(target.good(), mm_placeholders=change), right)
    yield target.send("touching", _touching(target), Refused("placement", PLACES, 1))


def _touching(target: Target) -> Body:
    """The tokens between the two images are gone."""
    body = target.good()
    one, two = body["features"]["mm_placeholders"]["image"]
    end = one["offset"] + one["length"]
    del body["token_ids"][end : two["offset"]]
    return with_lists(body, mm_placeholders=second(offset=end))


if __name__ == "__main__":
    main(attack)
