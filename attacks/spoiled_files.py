"""Somebody who can write into the store changes an image's file, or puts one there that is not canonical.

Changed bytes are another picture under an old name. A file that says how it is to be turned, or what shines
through it, is seen one way by the engine and another way by the trainer, with the same number of tokens.
So the bytes are hashed at every read, and what is not upright, opaque and 8-bit is refused even where its
hash is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from body import REFERENCES
from PIL import Image
from target import SIZES, Target, main
from verdict import Harmless, Outcome, Refused

from tests.store.pictures import encode, noise

SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "truncated by a byte": lambda data: data[:-1],
    "half of it": lambda data: data[: len(data) // 2],
    "a byte longer": lambda data: data + b"\0",
    "a bit changed": lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
    "zeros": lambda data: bytes(len(data)),
    "another image of the same size": lambda _: encode(Image.fromarray(noise(*SIZES[0], 3, 5)), "PNG"),
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, spoil in SPOIL.items():
        picture = target.unseen()
        body = target.request([target.picture(0), picture])
        with target.spoiled(picture) as place:
            place.write_bytes(spoil(Path(f"{place}.aside").read_bytes()))
            yield target.send(name, body, Refused("image_damaged", REFERENCES, 1))
    yield from _swapped(target)
    yield from _not_canonical(target)
    picture = target.unseen()
    body = target.request([target.picture(0), picture])
    with target.spoiled(picture):
        yield target.send("gone", body, Refused("image_not_found", REFERENCES, 1))


def _swapped(target: Target) -> Iterator[Outcome]:
    """Two images have changed their names; neither may be seen for the other."""
    one, other = target.unseen(), target.unseen()
    with target.spoiled(one) as here, target.spoiled(other) as there:
        here.write_bytes(Path(f"{there}.aside").read_bytes())
        there.write_bytes(Path(f"{here}.aside").read_bytes())
        for name, picture in {"swapped with another": one, "and the other": other}.items():
            body = target.request([target.picture(0), picture])
            yield target.send(name, body, Refused("image_damaged", REFERENCES, 1))


def _not_canonical(target: Target) -> Iterator[Outcome]:
    picture = Image.fromarray(noise(*SIZES[0], 3, 9))
    seen_through = Image.fromarray(noise(*SIZES[0], 4, 9))
    files = {
        "turned by its EXIF, JPEG": (encode(picture, "JPEG", orientation=6), ".jpg"),
        "turned by its EXIF, PNG": (encode(picture, "PNG", orientation=6), ".png"),
        "turned by its EXIF, WebP": (encode(picture, "WEBP", orientation=6), ".webp"),
        "transparent, PNG": (encode(seen_through, "PNG"), ".png"),
        "transparent, WebP": (encode(seen_through, "WEBP", lossless=True), ".webp"),
        "a transparent colour": (encode(picture.quantize(16), "PNG", transparency=0), ".png"),
        "16 bits": (encode(Image.new("I;16", SIZES[0]), "PNG"), ".png"),
        "several frames": (encode(picture, "PNG", save_all=True, append_images=[Image.new("RGB", SIZES[0])]), ".png"),
        "a GIF that is called PNG": (encode(picture, "GIF"), ".png"),
        "no image": (b"#!/bin/sh\nrm -rf /\n", ".png"),
    }
    for name, (data, ending) in files.items():
        with target.planted(data, ending) as planted:
            body = target.request([target.picture(0), planted])
            yield target.send(name, body, Refused("image_format", REFERENCES, 1))
    # Whoever reads it looks at the bytes, and they are canonical.
    with target.planted(encode(picture, "JPEG"), ".png") as planted:
        yield target.send("a JPEG that is called PNG", target.request([target.picture(0), planted]), Harmless())


if __name__ == "__main__":
    main(attack)
