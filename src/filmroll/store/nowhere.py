"""The store of inline runs: it keeps nothing, and its references hold the images themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator

from filmroll.image import ImageRef
from filmroll.store.ingest.canonical import Canonical
from filmroll.store.inline import data_uri
from filmroll.store.shelves.shelf import Item, Shelf
from filmroll.store.store import Store

URL = "inline:"


class InlineStore(Store):
    """Everything of a store but the place; its references are read by every store."""

    def write(self, image: Canonical) -> ImageRef:
        return ImageRef(
            uri=data_uri(image.media_type, image.data),
            sha256=image.sha256,
            media_type=image.media_type,
            width=image.width,
            height=image.height,
            nbytes=len(image.data),
        )


class Nowhere(Shelf):
    """Every key is free and stays so: what says which images are needed is not needed where none is kept."""

    def __repr__(self) -> str:
        return "Nowhere()"

    def uri(self, key: str) -> str:
        return URL + key

    def create(self, _key: str, _data: bytes) -> bool:
        return True

    def replace(self, _key: str, _data: bytes) -> None:
        return None

    def settle(self, _key: str) -> None:
        return None

    def read(self, key: str, _at_most: int) -> bytes:
        raise FileNotFoundError(key)

    def stat(self, _key: str) -> Item | None:
        return None

    def touch(self, _key: str) -> bool:
        return False

    def items(self, _folder: str = "") -> Iterator[Item]:
        return iter(())

    def copy(self, key: str, _to: str) -> bool:
        raise FileNotFoundError(key)

    def move(self, key: str, _to: str) -> Item:
        raise FileNotFoundError(key)

    def delete(self, _key: str) -> None:
        return None

    def now(self) -> float:
        return time.time()
