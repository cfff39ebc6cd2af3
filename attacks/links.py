"""Somebody who can write into the store puts there what is no file.

A symbolic link leads out of the store, a FIFO has its reader wait for ever, a device never ends, a file with
a hole has a terabyte. So nothing is followed and nothing is read but a regular file of the length that
was claimed.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from body import REFERENCES
from target import Target, main
from verdict import Outcome, Refused

TERABYTE = 1 << 40


def link(place: Path) -> None:
    place.symlink_to(f"{place.name}.aside")


def link_to_a_device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def link_to_itself(place: Path) -> None:
    place.symlink_to(place.name)


def link_to_nothing(place: Path) -> None:
    place.symlink_to("nothing")


def fifo(place: Path) -> None:
    os.mkfifo(place)


def device(place: Path) -> None:
    """/dev/zero."""
    os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def unix_socket(place: Path) -> None:
    """Bound elsewhere first: the address of a socket may not be long."""
    with socket.socket(socket.AF_UNIX) as listener:
        short = Path(f"/tmp/filmroll-{os.getpid()}.socket")  # noqa: S108
        listener.bind(str(short))
        shutil.move(short, place)


def folder(place: Path) -> None:
    place.mkdir()


def hole(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(TERABYTE)


KINDS: tuple[Callable[[Path], None], ...] = (
    link, link_to_a_device, link_to_itself, link_to_nothing, fifo, device, unix_socket, folder, hole,
)  # fmt: skip


def attack(target: Target) -> Iterator[Outcome]:
    for kind in KINDS:
        picture = target.unseen()
        body = target.request([target.picture(0), picture])
        with target.spoiled(picture) as place:
            try:
                kind(place)
            except PermissionError:
                # Only root makes devices.
                continue
            name = kind.__name__.replace("_", " ")
            yield target.send(f"{name} in place of the image", body, Refused("image_damaged", REFERENCES, 1))
    yield from _folder_of_the_image(target)


def _folder_of_the_image(target: Target) -> Iterator[Outcome]:
    """The folder around the image leads elsewhere."""
    picture = target.unseen()
    body = target.request([target.picture(0), picture])
    shard = target.file(picture).parent
    aside = shard.with_name(f"{shard.name}.aside")
    shard.rename(aside)
    try:
        shard.symlink_to(aside.name)
        yield target.send("a link in place of its folder", body, Refused("image_damaged", REFERENCES, 1), check=False)
        shard.unlink()
        shard.write_bytes(b"x")
        yield target.send("a file in place of its folder", body, Refused("image_damaged", REFERENCES, 1), check=False)
    finally:
        shard.unlink()
        aside.rename(shard)


if __name__ == "__main__":
    main(attack)
