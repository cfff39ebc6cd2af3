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
from verdict import Harmless, Outcome, Refused, Verdict, Worded

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


MISFIT: dict[str, tuple[Change, Verdict, Verdict | None]] = {
    "a hash too few": (dropped("mm_hashes"), Refused("request", PLACES), Worded("mm_hashes")),
    "a place too few": (dropped("mm_placeholders"), Refused("request", PLACES), Worded("mm_placeholders")),
    "a reference too few": (dropped("kwargs_data"), Refused("request", REFERENCES), Worded("kwargs_data")),
    "a hash too many": (repeated("mm_hashes"), Refused("request", PLACES), Worded("mm_hashes")),
    "a place too many": (repeated("mm_placeholders"), Refused("request", PLACES), Worded("mm_placeholders")),
    "a reference too many": (repeated("kwargs_data"), Refused("request", REFERENCES), Worded("kwargs_data")),
    "an image too few in all": (
        lambda body: [dropped(name)(body) for name in body["features"]],
        Refused("placement", PLACES),
        None,
    ),
    "places of another modality": (
        moved("mm_placeholders", "video"),
        Refused("request", "features.mm_placeholders"),
        Worded("mm_placeholders"),
    ),
    "references of another modality": (
        moved("kwargs_data", "video"),
        Refused("request", "features.kwargs_data"),
        Worded("kwargs_data"),
    ),
    "all of another modality": (all_as("video"), Refused("request", "features.kwargs_data.video", 0), None),
    "of no modality": (all_as(""), Refused("request", "features.mm_hashes"), None),
    "of two modalities": (
        all_as("image", "video"),
        Refused("request", "features.mm_hashes"),
        Worded("mm_placeholders"),
    ),
    "no hashes": (without("mm_hashes"), Refused("request", "features"), Worded("mm_hashes")),
    "no places": (without("mm_placeholders"), Refused("request", "features"), Worded("mm_placeholders")),
    "empty lists": (
        features(lambda lists: {name: {"image": []} for name in lists}),
        Refused("placement", "token_ids"),
        # To vLLM this is text alone, and it answers.
        Harmless(),
    ),
    "None for a hash": (
        slot("mm_hashes", None),
        Refused("request", "features.mm_hashes[...][1]"),
        Worded("mm_hashes"),
    ),
    "None for a reference": (slot("kwargs_data", None), Refused("reference_unknown", HASHES, 1), None),
    "a number for a reference": (
        slot("kwargs_data", 7),
        Refused("request", "features.kwargs_data[...][1]"),
        Worded("kwargs_data"),
    ),
    "an empty reference": (slot("kwargs_data", ""), Refused("reference_format", REFERENCES, 1), None),
    "nothing after the prefix": (slot("kwargs_data", "mmraw:"), Refused("reference_format", REFERENCES, 1), None),
    "the same reference twice": (
        lambda body: with_lists(body, kwargs_data=lambda texts: [texts[0]] * 2),
        Refused("request", HASHES, 1),
        None,
    ),
    "references in another order": (
        lambda body: with_lists(body, kwargs_data=lambda texts: texts[::-1]),
        Refused("request", HASHES, 0),
        None,
    ),
    "a list of lists": (
        lambda body: with_lists(body, kwargs_data=lambda texts: [texts]),
        Refused("request", "features.kwargs_data[...][0]"),
        Worded("kwargs_data"),
    ),
    "features that are a list": (
        lambda body: body.update(features=[body["features"]]),
        Refused("request", "features"),
        Worded("features"),
    ),
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, (change, right, vllm) in MISFIT.items():
        body = target.good()
        change(body)
        yield target.send(name, body, right, vllm=vllm)


if __name__ == "__main__":
    main(attack)
