"""Somebody names one image and sends another, so that others are answered about what he sent.

Caches know images by a name. Where a request chooses that name, whoever comes first decides what is seen under
it from then on (the forged hash of CVE-2026-105754). So the name follows from the bytes: every claim about an
image is compared with them, however the claim is made, and no request that is refused leaves anything
behind. A thousand pairs of images are named for each other, in both orders, each way in turn; then every one of
them is answered as its twin is, a file with the same pixels and other bytes that nobody attacked.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from itertools import cycle
from random import Random

from body import HASHES, REFERENCES, Body
from PIL import Image
from target import Target, main
from verdict import Answer, Harmless, Outcome, Refused, Verdict

from filmroll.image import ImageRef
from tests.store.pictures import encode, noise

PAIRS = 1_000
IMAGES = 24
SIZE = (64, 64)


def with_the_digest(target: Target, one: ImageRef, other: ImageRef) -> tuple[Body, Verdict]:
    """The digest of one in the list, the reference of the other."""
    body = target.request([other])
    body["features"]["mm_hashes"]["image"] = [one.sha256]
    return body, Refused("request", HASHES, 0)


def in_the_reference(target: Target, one: ImageRef, other: ImageRef) -> tuple[Body, Verdict]:
    """The digest of one in the reference of the other."""
    body = target.request([other])
    (said,) = body["features"]["kwargs_data"]["image"]
    forged = said.replace(f'"mm_hash":"{other.sha256}"', f'"mm_hash":"{one.sha256}"')
    body["features"]["kwargs_data"]["image"] = [forged]
    return body, Refused("request", HASHES, 0)


def at_its_place(target: Target, one: ImageRef, other: ImageRef) -> tuple[Body, Verdict]:
    """The digest of one everywhere, the place of the other."""
    return _located(target, one, other.uri), Refused("outside_store", REFERENCES, 0)


def inside(target: Target, one: ImageRef, other: ImageRef) -> tuple[Body, Verdict]:
    """The digest of one everywhere, the bytes of the other in the reference."""
    data = base64.b64encode(target.store.read(other)).decode()
    return _located(target, one, f"data:{other.media_type};base64,{data}"), Refused("image_damaged", REFERENCES, 0)


def with_its_length(target: Target, one: ImageRef, other: ImageRef) -> tuple[Body, Verdict]:
    """One, as long as both together."""
    body = target.request([one])
    said = body["features"]["kwargs_data"]["image"][0]
    body["features"]["kwargs_data"]["image"] = [
        said.replace(f'"nbytes":{one.nbytes}', f'"nbytes":{one.nbytes + other.nbytes}')
    ]
    return body, Refused("image_damaged", REFERENCES, 0)


def as_a_part(target: Target, one: ImageRef, other: ImageRef) -> tuple[Body, Verdict]:
    """The other as a content part that is named as one: where such are taken, they have names of their own."""
    body = target.request([])
    data = base64.b64encode(target.store.read(other)).decode()
    url = f"data:{other.media_type};base64,{data}"
    body["token_ids"].insert(0, target.family.placeholders.image)
    return body | {
        "content_parts": [{"type": "image_url", "url": url, "uuid": f"{one.sha256}-{target.family.recipe}"}]
    }, Harmless()


WAYS: tuple[Callable[[Target, ImageRef, ImageRef], tuple[Body, Verdict]], ...] = (
    with_the_digest, in_the_reference, at_its_place, inside, with_its_length, as_a_part,
)  # fmt: skip


def attack(target: Target) -> Iterator[Outcome]:
    random = Random(0)
    seeds = [random.randrange(2**32) for _ in range(IMAGES)]
    # Nobody has asked about these before they are attacked.
    images = [target.store.put(_file(seed, random.randrange(1, 6))) for seed in seeds]
    twins = [target.store.put(_file(seed, 9)) for seed in seeds]
    expected = [target.ask(target.request([twin])).sampled for twin in twins]
    pairs = [random.sample(images, 2) for _ in range(PAIRS)]
    forged = [(way, order) for way, pair in zip(cycle(WAYS), pairs, strict=False) for order in (pair, pair[::-1])]

    def attempt(number: int) -> Outcome:
        way, (one, other) = forged[number]
        body, right = way(target, one, other)
        name = f"pair {number // 2}, {way.__name__.replace('_', ' ')}"
        return target.send(name, body, right, check=False)

    yield from target.together(attempt, len(forged))
    for number, (image, twin) in enumerate(zip(images, expected, strict=True)):
        answer = target.ask(target.request([image]))
        wrong = "" if answer.status == 200 and answer.sampled == twin else f"its twin is answered with {twin}"
        yield Outcome(f"image {number}, afterwards", image.sha256, answer, wrong)
    distinct = len({str(one) for one in expected})
    blind = "" if distinct == IMAGES else f"the model tells only {distinct} of {IMAGES} images apart"
    yield Outcome("images that look alike to the model", f"{IMAGES} images", Answer(200, ""), blind or target.harm())


def _file(seed: int, level: int) -> bytes:
    """The same pixels at every level of compression, and other bytes."""
    return encode(Image.fromarray(noise(*SIZE, 3, seed) // 64 * 64), "PNG", compress_level=level)


def _located(target: Target, image: ImageRef, uri: str) -> Body:
    """A request about one image that is said to lie elsewhere."""
    body = target.request([image])
    (said,) = body["features"]["kwargs_data"]["image"]
    body["features"]["kwargs_data"]["image"] = [said.replace(image.uri, uri)]
    return body


if __name__ == "__main__":
    main(attack)
