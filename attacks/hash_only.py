"""Somebody sends a hash in place of a reference, so that the engine brings out what others have sent.

An engine that knows images by their digests shows them to whoever knows a digest, which stands in every file
name of the store. So what may stand in a reference's place is the hash of the whole reference as the
engine has seen it: who knows that, knows the reference. Every other is unknown, and is not looked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from body import HASHES, PLACES, REFERENCES, told, with_lists
from target import Target, main
from verdict import Harmless, Outcome, Refused

UNKNOWN = Refused("reference_unknown", HASHES, 1)


def attack(target: Target) -> Iterator[Outcome]:
    texts = target.good()["features"]["kwargs_data"]["image"]
    known = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    said = told(target.good())

    def hashed(one: Any, **more: Any) -> dict[str, Any]:
        return with_lists(
            target.good(), kwargs_data=lambda texts: [texts[0], None], mm_hashes=lambda own: [own[0], one], **more
        )

    def referred(text: str) -> dict[str, Any]:
        return with_lists(target.good(), kwargs_data=lambda texts: [texts[0], text])

    for name, digest in {
        "of nothing": "0" * 64,
        "of the image": said["mm_hash"],
        "of the image, cut": said["mm_hash"][:32],
        "of the image and its recipe": f"{said['mm_hash']}-{said['filmroll']['recipe']}",
        "of the reference, cut": known[1][:32],
        "of the reference, in capitals": known[1].upper(),
        "that is empty": "",
        "that is a path": "../../etc/passwd",
        "that is the reference": texts[1],
        "that is a pattern": "*",
    }.items():
        yield target.send(f"a hash {name}", hashed(digest), UNKNOWN)
    yield target.send("hashes alone, of the images", _alone(target, None), Refused("reference_unknown", HASHES, 0))
    yield target.send("a hash that is known", hashed(known[1]), Harmless())
    yield target.send("hashes alone that are known", _alone(target, known), Harmless())
    yield target.send(
        "a hash that is known, beside another reference",
        with_lists(target.good(), mm_hashes=lambda own: [own[0], known[1]]),
        Refused("request", HASHES, 1),
    )
    yield target.send(
        "a hash that is known, at another place",
        hashed(known[1], mm_placeholders=lambda spans: [spans[0], spans[1] | {"length": spans[1]["length"] - 1}]),
        Refused("request", PLACES, 1),
    )
    yield target.send("the other's hash", hashed(known[0]), Harmless())
    for name, text in {
        "another system's file of features": f"mmfile:v1:run:{said['fingerprint']}:image:{said['mm_hash']}",
        "a file of features out of its folder": f"mmfile:v1:..:{said['fingerprint']}:image:{said['mm_hash']}",
        "a file of features by a path": "mmfile:v1:../../etc:passwd:image:0",
    }.items():
        yield target.send(name, referred(text), Refused(("reference_format", "features_not_found"), REFERENCES, 1))


def _alone(target: Target, hashes: list[str] | None) -> dict[str, Any]:
    """No reference at all."""
    body = target.good()
    body["features"]["kwargs_data"] = None
    return body if hashes is None else with_lists(body, mm_hashes=lambda _: hashes)


if __name__ == "__main__":
    main(attack)
