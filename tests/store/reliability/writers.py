"""Writers that are killed: python -m tests.store.reliability.writers FOLDER KILLS

One process forks eight writers that put the same and other images, mend images, move them out and
back. Each says in a pipe what it begins and what it has been given. One after the other is killed at
a random moment and followed by a new one. After each kill, what the dead one was at is looked at;
after each round, everything. Prints what happened as JSON; any violation is an error.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import selectors
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from filmroll.errors import ImageDamagedError, ImageNotFoundError
from filmroll.image import ImageRef
from filmroll.store import Store, open_store
from filmroll.store.keys import QUARANTINE, TEMPORARY, TRASH, named_object, object_key
from filmroll.store.store import log
from tests.store.pictures import encode

SLOTS = 8
SHARED = 30
KILLS_A_ROUND = 200
LONGEST = 0.03
"""Seconds that a writer lives, at most, after it has begun to write."""

PNG = encode(Image.fromarray(np.zeros((8, 8, 3), np.uint8)), "PNG")


def picture(label: str) -> bytes:
    """Bytes after its end do not matter to a picture, and make it another image."""
    chance = random.Random(label)
    length = chance.choice((1_000, *[30_000] * 8, 1_000_000))
    return PNG + label.encode() * (length // len(label))


def ref_of(root: Path, label: str) -> ImageRef:
    data = picture(label)
    digest = hashlib.sha256(data).hexdigest()
    uri = (root / object_key(f"{digest}.png")).as_uri()
    return ImageRef(uri, digest, "image/png", 8, 8, len(data))


def key_of(root: Path, label: str) -> str:
    return object_key(f"{ref_of(root, label).sha256}.png")


class Writer:
    """What runs in a writer's process."""

    def __init__(self, root: Path, slot: int, life: int, pipe: int) -> None:
        self.root, self.slot, self.life, self.pipe = root, slot, life, pipe
        self.chance = random.Random(life)
        self.store = open_store(root)

    def run(self) -> NoReturn:
        jobs = [self.put_new, self.put_shared, self.put_shared, self.mend, self.move, self.meddle]
        number = 0
        while True:
            number += 1
            self.chance.choice(jobs)(number)

    def say(self, *words: str) -> None:
        os.write(self.pipe, (" ".join(words) + "\n").encode())

    def put(self, store: Store, label: str) -> None:
        self.say("begin", label)
        ref = store.put(picture(label))
        self.say("kept", label, ref.sha256, str(ref.nbytes))

    def put_new(self, number: int) -> None:
        self.put(self.store, f"new-{self.life}-{number}")

    def put_shared(self, number: int) -> None:
        store = self.store if self.chance.random() < 0.5 else open_store(self.root)
        self.put(store, f"shared-{self.chance.randrange(SHARED)}")

    def mend(self, number: int) -> None:
        """Damage one's own image, find it damaged, put it again."""
        label = f"mended-{self.slot}"
        path = self.root / key_of(self.root, label)
        if path.exists():
            self.say("damage", label)
            with suppress(FileNotFoundError), path.open("r+b") as file:
                file.write(b"?") if self.chance.random() < 0.5 else file.truncate(9)
        if self.chance.random() < 0.5:
            self.look(label)
        self.put(open_store(self.root), label)

    def move(self, number: int) -> None:
        """What gc does, with images that others put meanwhile; no other slot moves these."""
        label = f"moved-{self.slot}"
        self.put(self.store, label)
        key, trash = key_of(self.root, label), f"{TRASH}/{key_of(self.root, label)[3:]}"
        with suppress(FileNotFoundError):
            self.store.shelf.move(key, trash)
        if self.chance.random() < 0.7:
            with suppress(FileNotFoundError):
                self.store.shelf.copy(trash, key)
                self.store.shelf.delete(trash)

    def meddle(self, number: int) -> None:
        """Look at, mend or put what is another's to damage or to move."""
        other = self.chance.randrange(SLOTS)
        if self.chance.random() < 0.3:
            self.put(self.store, f"moved-{other}")
        elif self.chance.random() < 0.5:
            self.look(f"mended-{other}")
        else:
            open_store(self.root).put(picture(f"mended-{other}"))

    def look(self, label: str) -> None:
        with suppress(ImageDamagedError, ImageNotFoundError):
            assert open_store(self.root).read(ref_of(self.root, label)) == picture(label)


@dataclass
class Life:
    """A writer as the foreman knows it."""

    slot: int
    pid: int
    pipe: int
    due: float | None = None
    killed: bool = False
    heard: bytes = b""
    said: list[list[str]] = field(default_factory=list)


class Foreman:
    def __init__(self, folder: Path, kills: int) -> None:
        self.folder, self.kills = folder, kills
        self.chance = random.Random(kills)
        self.counts: Counter[str] = Counter()
        self.kept: set[str] = set()
        self.root = folder
        self.lives: list[Life] = []

    def run(self) -> None:
        try:
            self._rounds()
        finally:
            for life in self.lives:
                os.kill(life.pid, signal.SIGKILL)

    def _rounds(self) -> None:
        while self.counts["kills"] < self.kills:
            self.root = self.folder / f"round-{self.counts['rounds']}"
            self.kept.clear()
            self._round(min(KILLS_A_ROUND, self.kills - self.counts["kills"]))
            self._check_all()
            shutil.rmtree(self.root)
            self.counts["rounds"] += 1

    def _round(self, kills: int) -> None:
        last = self.counts["kills"] + kills
        self.lives = lives = [self._start(slot) for slot in range(SLOTS)]
        while lives:
            for life in self._gone(lives):
                lives.remove(life)
                self._bury(life)
                if self.counts["kills"] + len(lives) < last:
                    lives.append(self._start(life.slot))
            for life in lives:
                if not life.killed and life.due is not None and life.due <= time.monotonic():
                    os.kill(life.pid, signal.SIGKILL)
                    life.killed = True

    def _start(self, slot: int) -> Life:
        self.counts["lives"] += 1
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                # Without the others' pipes, which would keep them from noticing that nobody listens any more.
                os.dup2(theirs, 3)
                theirs = 3
                os.closerange(4, 256)
                Writer(self.root, slot, self.counts["lives"], theirs).run()
            except BaseException:  # noqa: BLE001 - said to the foreman, who fails
                os.write(theirs, f"error {json.dumps(traceback.format_exc()[-3000:])}\n".encode())
            finally:
                os._exit(1)
        os.close(theirs)
        return Life(slot, pid, ours)

    def _gone(self, lives: list[Life]) -> list[Life]:
        """Listen until one is due; those whose pipes have ended. A kill may have to wait for a disk."""
        due = min((life.due for life in lives if life.due and not life.killed), default=time.monotonic() + 1)
        with selectors.DefaultSelector() as selector:
            for life in lives:
                selector.register(life.pipe, selectors.EVENT_READ, life)
            heard = selector.select(max(0.0, due - time.monotonic()))
        return [key.data for key, _ in heard if not self._hear(key.data)]

    def _hear(self, life: Life) -> bool:
        """Take in what a writer has said; False if that was its last."""
        part = os.read(life.pipe, 1 << 16)
        *lines, life.heard = (life.heard + part).split(b"\n")
        for line in lines:
            self._take(life, line.decode().split(" ", 1 if line.startswith(b"error") else -1))
        if life.due is None and life.said:
            # However busy the machine: it is at work, and dies at a random moment of it.
            life.due = time.monotonic() + self.chance.random() * LONGEST
        return bool(part)

    def _take(self, life: Life, words: list[str]) -> None:
        what, label = words[:2]
        if what == "error":
            raise AssertionError(json.loads(label))
        life.said.append(words)
        if what == "damage":
            self.kept.discard(label)
        elif what == "kept":
            ref = ref_of(self.root, label)
            assert words[2:] == [ref.sha256, str(ref.nbytes)]
            self.kept.add(label)
            self.counts["acknowledged"] += 1

    def _bury(self, life: Life) -> None:
        _, status = os.waitpid(life.pid, 0)
        os.close(life.pipe)
        assert life.killed
        assert os.WIFSIGNALED(status), f"a writer ended by itself: {life.said[-1:]}"
        self.counts["kills"] += 1
        self.counts["killed_in_a_put"] += life.said[-1][0] == "begin"
        for label in {words[1] for words in life.said[-6:]}:
            # What another slot moves may be on its way just now.
            if not label.startswith("moved") or label == f"moved-{life.slot}":
                self._check(label)

    def _check(self, label: str) -> None:
        try:
            assert open_store(self.root).read(ref_of(self.root, label)) == picture(label), f"{label} is another image"
        except ImageNotFoundError:
            assert label not in self.kept, f"{label} was acknowledged and is lost"
        except ImageDamagedError:
            # Only its owner damages an image: any other is torn.
            assert label.startswith("mended") and label not in self.kept, f"{label} is torn"

    def _check_all(self) -> None:
        """With nobody at work: every file is whole, under its own name, or lies where drafts and damage do."""
        mended = {key_of(self.root, f"mended-{slot}") for slot in range(SLOTS)}
        for key, data in self._files():
            folder, name = key.split("/", 1)
            if folder == TEMPORARY:
                self.counts["drafts_left"] += 1
            elif folder == QUARANTINE:
                assert any(name.startswith(key[3:]) for key in mended), f"{key} was set aside"
            else:
                assert folder == TRASH or named_object(key), f"{key} is misnamed"
                assert hashlib.sha256(data).hexdigest() == name[:64] or key in mended, f"{key} is torn"
                self.counts["objects"] += 1
        for label in sorted(self.kept):
            self._check(label)
        store = open_store(self.root)
        for label in sorted(self.kept):
            assert store.read(store.put(picture(label))) == picture(label)

    def _files(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.root.rglob("*")):
            if not path.is_dir():
                yield path.relative_to(self.root).as_posix(), path.read_bytes()


def main(folder: str, kills: str) -> None:
    log.disabled = True
    open_store(Path(folder) / "warm").put(PNG)
    gc.collect()
    gc.freeze()
    foreman = Foreman(Path(folder), int(kills))
    begun = time.monotonic()
    foreman.run()
    sys.stdout.write(json.dumps(foreman.counts | {"seconds": round(time.monotonic() - begun)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
