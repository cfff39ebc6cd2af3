"""A pass over a data set before anything is learnt: every row read, of every image the header alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from filmroll.dataset.conversation import Reader
from filmroll.dataset.rows import Rows
from filmroll.errors import DatasetError, FilmrollError, ImageSourceError
from filmroll.families import Family
from filmroll.render import Renderer
from filmroll.store.formats.base import Limits
from filmroll.store.formats.header import read_header
from filmroll.store.formats.pillow import image_errors
from filmroll.store.ingest.http_sources import HttpSources
from filmroll.store.ingest.sources import fetch, path_of


def bad_rows(rows: Rows, reader: Reader, renderer: Renderer) -> Iterator[tuple[int, FilmrollError]]:
    """The rows that cannot be learnt from as far as that can be told without a pixel or a token, and why, in order."""
    store = renderer.store
    for index in range(len(rows)):
        try:
            conversation = reader.read(rows[index])
            renderer.check(conversation.messages, tools=conversation.tools)
            for number, source in enumerate(conversation.images):
                try:
                    _glance(source, renderer.family, store.limits, store.http)
                except FilmrollError as error:
                    raise error.at(index=number) from error
        except FilmrollError as error:
            yield index, error.about(rows.place(index))


def _glance(source: Any, family: Family, limits: Limits, http: HttpSources | None) -> None:
    """Whether the source seems to be an image that the family takes; nothing is fetched from elsewhere."""
    if isinstance(source, str) and not source.startswith("data:"):
        if "://" in source[:12] and not source.startswith("file:"):
            scheme = source.partition("://")[0].lower()
            if http is None or scheme not in http.schemes:
                fetch(source, limits, None)
            return
        width, height = _size(Path(path_of(source) if source.startswith("file:") else source), limits)
    else:
        data = fetch(source, limits)
        if not isinstance(data, bytes):
            raise DatasetError("a row holds an image as bytes, a path or a URI")
        header = read_header(data, limits)
        width, height = header.width, header.height
    family.layout(width, height)


def _size(path: Path, limits: Limits) -> tuple[int, int]:
    if not path.is_file():
        raise ImageSourceError(
            "there is no such image file", remedy="See data.image_root: relative paths begin there", private=str(path)
        )
    limits.check_bytes(path.stat().st_size)
    with image_errors("the image's file"), Image.open(path) as image:
        limits.check_size(*image.size)
        return image.size
