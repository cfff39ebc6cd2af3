"""Somebody sends parallel lists that do not fit each other: of other lengths, of other modalities, with holes.

Who walks through them together mistakes one image's hash or place for another's, runs off the end of one,
or hands on a None where a model expects a grid, which has ended vLLM's engine. So lists that differ in
length or modality are refused, and so is every image without its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from body import HASHES, PLACES, REFERENCES, Body, with_lists
from target import Target, main
from verdict import Outcome, Refused, Worded

Change = Callable[[Body], Any]


def dropped(name: str) -> Change:
    return lambda body: with_lists(body, **{name: lambda items: items[:1]})


def repeated(name: str) -> Change:
    return lambda body: with_lists(body, **{name: lambda items: [*items, items[1]]})


def features(change: Callable[[Body], Body]) -> Change:
    return lambda body: body.update(features=change(body["features"]))


def all_as(*modalities: str) -> Change:
    return features(lambda lists: {name: dict.fromkeys(modalities, items["image"]) for name, items in lists.items()})


def moved(name: str, modality: str) -> Change:
    return features(lambda lists: lists | {name: {modality: lists[name]["image"]}})


def without(name: str) -> Change:
    return features(lambda lists: {one: items for one, items in lists.items() if one != name})


def slot(name: str, value: Any) -> Change:
    return lambda body: with_lists(body, **{name: lambda items: [items[0], value]})


MISFIT: dict[str, tuple[Change, Refused]] = {
    "a hash too few": (dropped("mm_hashes"), Refused("request", PLACES)),
    "a place too few": (dropped("mm_placeholders"), Refused("request", PLACES)),
    "a reference too few": (dropped("kwargs_data"), Refused("request", REFERENCES)),
    "a hash too many": (repeated("mm_hashes"), Refused("request", PLACES)),
    "a place too many": (repeated("mm_placeholders"), Refused("request", PLACES)),
    "a reference too many": (repeated("kwargs_data"), Refused("request", REFERENCES)),
    "an image too few in all": (
        lambda body: [dropped(name)(body) for name in body["features"]],
        Refused("placement", PLACES),
    ),
    "places of another modality": (
        moved("mm_placeholders", "video"),
        Refused("request", "features.mm_placeholders"),
    ),
    "references of another modality": (
        moved("kwargs_data", "video"),
        Refused("request", "features.kwargs_data"),
    ),
    "all of another modality": (all_as("video"), Refused("request", "features.kwargs_data.video", 0)),
    "of no modality": (all_as(""), Refused("request", "features.mm_hashes")),
    "of two modalities": (
        all_as("image", "video"),
        Refused("request", "features.mm_hashes"),
    ),
    "no hashes": (without("mm_hashes"), Refused("request", "features")),
    "no places": (without("mm_placeholders"), Refused("request", "features")),
    "empty lists": (
        features(lambda lists: {name: {"image": []} for name in lists}),
        Refused("placement", "token_ids"),
    ),
    "None for a hash": (
        slot("mm_hashes", None),
        Refused("request", "features.mm_hashes[...][1]", 1),
    ),
    "None for a reference": (slot("kwargs_data", None), Refused("reference_unknown", HASHES, 1)),
    "a number for a reference": (
        slot("kwargs_data", 7),
        Refused("request", "features.kwargs_data[...][1]", 1),
    ),
    "an empty reference": (slot("kwargs_data", ""), Refused("reference_format", REFERENCES, 1)),
    "nothing after the prefix": (slot("kwargs_data", "mmraw:"), Refused("reference_format", REFERENCES, 1)),
    "the same reference twice": (
        lambda body: with_lists(body, kwargs_data=lambda texts: [texts[0]] * 2),
        Refused("request", HASHES, 1),
    ),
    "references in another order": (
        lambda body: with_lists(body, kwargs_data=lambda texts: texts[::-1]),
        Refused("request", HASHES, 0),
    ),
    "a list of lists": (
        lambda body: with_lists(body, kwargs_data=lambda texts: [texts]),
        Refused("request", "features.kwargs_data[...][0]", 0),
    ),
    "features that are a list": (
        lambda body: body.update(features=[body["features"]]),
        Refused("request", "features"),
    ),
}

VLLM_FIRST = {
    "of two modalities": Worded("mm_placeholders"),
    "a list of lists": Worded("kwargs_data"),
    "features that are a list": Worded("features"),
}
"""What vLLM refuses in its own words: the plugin sees no reference in it, or nothing wrong with one modality."""


def attack(target: Target) -> Iterator[Outcome]:
    for name, (change, right) in MISFIT.items():
        body = target.good()
        change(body)
        yield target.send(name, body, right, vllm=VLLM_FIRST.get(name))


if __name__ == "__main__":
    main(attack)
