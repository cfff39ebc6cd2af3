"""What Idefics3's line writes around tiles, in tokens.

How many tokens a marker or a new line takes is the tokenizer's matter: in some checkpoints a marker is
one token, in others it is spelled out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from filmroll.errors import CheckpointError
from filmroll.families.base import Placeholders

IMAGE, FAKE, OVERVIEW = "<image>", "<fake_token_around_image>", "<global-img>"


@dataclass(frozen=True, slots=True)
class Markers:
    """What stands in a placeholder before and after the tokens that take features."""

    tiles: tuple[tuple[tuple[int, ...], ...], ...]
    """Before the tile of each row and column, with the new line that ends the row above."""
    overview: tuple[int, ...]
    """Before the overview, with what ends the last row."""
    alone: tuple[int, ...]
    """Before a picture that has no tiles."""
    end: tuple[int, ...]

    def before(self, rows: int, columns: int) -> Iterator[tuple[int, ...]]:
        """The markers in order, one for each picture that the vision tower sees."""
        if rows * columns == 1:
            yield self.alone
            return
        for row in self.tiles[:rows]:
            yield from row[:columns]
        yield self.overview


def read_placeholders(tokenizer: Tokenizer, image: int, most: int) -> Placeholders:
    """Whatever is one token is made for images; what is spelled out is ordinary text.

    `image` is the token that takes features, `most` the number of tiles in the longest row or column.
    """
    numbers = range(1, most + 1)
    texts = (IMAGE, FAKE, OVERVIEW, *(_marker(row, column) for row in numbers for column in numbers))
    ids = {text: number for text in texts if (number := tokenizer.token_to_id(text)) is not None}
    if FAKE not in ids:
        raise CheckpointError(f"the tokenizer has no token {FAKE}", remedy="Use the complete folder of a checkpoint")
    return Placeholders(image=image, unsampled=tuple(ids.values()), texts=tuple(ids))


def _marker(row: int, column: int) -> str:
    return f"<row_{row}_col_{column}>"


def read_markers(tokenizer: Tokenizer, image: int, most: int) -> Markers:
    """The markers of up to `most` rows and columns, as the tokenizer encodes them between images."""

    def between(text: str) -> tuple[int, ...]:
        """The tokens of a text that stands between images, where special tokens part it from other text."""
        first, *ids, last = tokenizer.encode(IMAGE + text + IMAGE, add_special_tokens=False).ids
        if first != image or last != image or image in ids:
            raise CheckpointError(
                f"image_token_id is {image}, which is not the tokenizer's {IMAGE}",
                remedy="The files are not of one checkpoint; fetch them again",
            )
        return tuple(ids)

    def tile(row: int, column: int) -> tuple[int, ...]:
        new_line = "\n" if row > 1 and column == 1 else ""
        return between(new_line + FAKE + _marker(row, column))

    numbers = range(1, most + 1)
    return Markers(
        tiles=tuple(tuple(tile(row, column) for column in numbers) for row in numbers),
        overview=between(f"\n\n{FAKE}{OVERVIEW}"),
        alone=between(FAKE + OVERVIEW),
        end=between(FAKE),
    )
