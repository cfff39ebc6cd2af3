"""Somebody refers to a file that is not an image of the store.

An engine that opens whatever path or URL a request names reads any file of its machine for whoever asks,
and connects to any service near it. So only the one place is opened that follows from the digest: no
spelling of another is looked at, none is resolved, nothing is fetched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from body import REFERENCES, retold, told
from target import Target, main
from verdict import Outcome, Refused

ELSEWHERE = (
    "file:///etc/hostname.png",
    "file:///proc/self/environ.png",
    "file:///dev/zero.png",
    "http://127.0.0.1:1/{name}",
    "http://169.254.169.254/latest/meta-data/{name}",
    "https://localhost/{name}",
    "ftp://127.0.0.1/{name}",
    "s3://bucket/{shard}/{name}",
    "gs://bucket/{name}",
    "{root}/../{name}",
    "{root}/{shard}/../../../etc/{name}",
    "{root}/%2e%2e/{name}",
    "{root}/%2E%2E%2F{name}",
    "{root}/..%2f{name}",
    "{root}/%252e%252e/{name}",
    "{root}//{shard}/{name}",
    "{root}/./{shard}/{name}",
    "{root}/{shard}/{name}?x={name}",
    "{root}/{shard}/{name}#{name}",
    "{root}/tmp/{name}",
    "{root}/quarantine/{name}",
    "{localhost}/{shard}/{name}",
    "{path}/{shard}/{name}",
    "file:{path}/{shard}/{name}",
    "FILE://{path}/{shard}/{name}",
    "{shard}/{name}",
    "../{name}",
)


def attack(target: Target) -> Iterator[Outcome]:
    uri = told(target.good())["raw_image_uri"]
    root, shard, name = uri.rsplit("/", 2)
    path = root.removeprefix("file://")
    places = {"root": root, "shard": shard, "name": name, "path": path, "localhost": f"file://localhost{path}"}
    for form in ELSEWHERE:
        yield target.send(
            form, retold(target.good(), raw_image_uri=form.format(**places)), Refused("outside_store", REFERENCES, 1)
        )
    for said, form in {
        "a null byte": f"{uri[:-4]}\0.png",
        "a line": f"{uri}\n",
        "a space": f"{uri} ",
        "nothing": "",
    }.items():
        yield target.send(said, retold(target.good(), raw_image_uri=form), Refused("reference_format", REFERENCES, 1))
    yield target.send(
        "another digest at this place",
        _of(target, "0" * 64, uri),
        Refused("outside_store", REFERENCES, 1),
    )
    yield target.send(
        "an image that is not there",
        _of(target, "0" * 64, uri.replace(name, f"{'0' * 64}.png").replace(f"/{shard}/", "/00/")),
        Refused("image_not_found", REFERENCES, 1),
    )
    outside = target.store_dir.with_name(f"{target.store_dir.name}-outside")
    (outside / shard).mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy(target.store_dir / shard / name, outside / shard / name)
        yield target.send(
            "the very bytes in another folder",
            retold(target.good(), raw_image_uri=(outside / shard / name).as_uri()),
            Refused("outside_store", REFERENCES, 1),
        )
    finally:
        shutil.rmtree(outside)


def _of(target: Target, digest: str, uri: str) -> dict[str, object]:
    body = retold(target.good(), raw_image_uri=uri, mm_hash=digest)
    body["features"]["mm_hashes"]["image"][1] = digest
    return body


if __name__ == "__main__":
    main(attack)
