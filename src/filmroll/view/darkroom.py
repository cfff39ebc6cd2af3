"""Images developed for the page: read through the store, which verifies them, and made small."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from filmroll.errors import FilmrollError, ImageDamagedError, ImageNotFoundError
from filmroll.image import INLINE, ImageRef
from filmroll.store import open_store
from filmroll.store.keys import object_key, object_name

THUMBNAIL = 160
"""Longest side of an image on the page, in pixels."""
DISTINCT = 400
"""Distinct images developed for one page; any beyond are named, not shown."""
_KEPT_BYTES = 16_384
_LARGEST_PIXELS = 100_000_000


@dataclass(frozen=True, slots=True)
class Tile:
    """One image in a strip. `picture` is its number among `Darkroom.pictures`; without one, `problem`
    says why there is nothing to see.
    """

    tokens: int | None
    title: str
    width: int
    height: int
    picture: int | None = None
    problem: str = ""

    @property
    def aspect(self) -> float:
        return min(max(self.width / self.height, 1 / 3), 3.0)


class Darkroom:
    """Develops each distinct image of a run once, from its store; `pictures` are data: URIs, by number."""

    def __init__(self, store: str | Path) -> None:
        self._store = open_store(store)
        self._numbers: dict[str, int] = {}
        self._problems: dict[str, str] = {}
        self._passed_over = 0
        self.pictures: list[str] = []

    @property
    def faults(self) -> int:
        """Distinct images that are missing, damaged or unreadable."""
        return len(self._problems)

    @property
    def passed_over(self) -> int:
        """Images not shown only because the page has enough."""
        return self._passed_over

    def tile(self, record: Any) -> Tile:
        """An image of a rollout's table, with its `offset` in a turn, whatever the record turns out to be."""
        try:
            ref = msgspec.convert(
                {name: record[name] for name in ImageRef.__struct_fields__ if name in record}, ImageRef
            )
        except (msgspec.ValidationError, TypeError):
            self._problems.setdefault(repr(record)[:400], "")
            return Tile(None, "this is no reference to an image", 1, 1, problem="not a reference")
        tokens = record.get("tokens")
        tokens = tokens if isinstance(tokens, int) else None
        number, problem = self._develop(ref)
        return Tile(tokens, _title(ref, record.get("offset")), ref.width, ref.height, number, problem)

    def _develop(self, ref: ImageRef) -> tuple[int | None, str]:
        if ref.sha256 in self._numbers:
            return self._numbers[ref.sha256], ""
        if ref.sha256 in self._problems:
            return None, self._problems[ref.sha256]
        if len(self.pictures) >= DISTINCT:
            self._passed_over += 1
            return None, "not shown"
        try:
            picture = _data_uri(self._read(ref), ref.media_type)
        except ImageNotFoundError:
            problem = "missing"
        except ImageDamagedError:
            problem = "damaged"
        except FilmrollError:
            problem = "unreadable"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            # What Pillow raises on broken files; its messages may hold addresses, so they are not shown.
            problem = "not an image"
        else:
            self.pictures.append(picture)
            self._numbers[ref.sha256] = len(self.pictures) - 1
            return len(self.pictures) - 1, ""
        self._problems[ref.sha256] = problem
        return None, problem

    def _read(self, ref: ImageRef) -> bytes:
        if ref.uri.startswith(INLINE):
            return self._store.read(ref)
        # A run's folder may have been moved since: an image is looked for by its digest, in the store
        # as it lies now, wherever its uri says it once was.
        place = self._store.shelf.uri(object_key(object_name(ref.sha256, ref.media_type)))
        return self._store.read(msgspec.structs.replace(ref, uri=place))


def _data_uri(data: bytes, media_type: str) -> str:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        if image.width * image.height > _LARGEST_PIXELS:
            raise ValueError("the image is too large for a thumbnail")
        fits = max(image.size) <= THUMBNAIL and len(data) <= _KEPT_BYTES
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        image.load()
        if not fits:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            out = io.BytesIO()
            small.save(out, "WEBP", quality=82)
            data, media_type = out.getvalue(), "image/webp"
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _title(ref: ImageRef, offset: Any) -> str:
    place = f", from token {offset} of its turn" if isinstance(offset, int) else ""
    kind = ref.media_type.removeprefix("image/").upper()
    return f"{ref.sha256[:16]}… {kind} {ref.width} x {ref.height}, {ref.nbytes:,} bytes{place}"
