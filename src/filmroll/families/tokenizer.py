"""A model folder's tokenizer.json, for what ids alone do not tell."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from filmroll.errors import CheckpointError

TOKENIZER = "tokenizer.json"


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer as it encodes for transformers too; CheckpointError where it cannot be read."""
    file = folder / TOKENIZER
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(
            f"{TOKENIZER} is missing or cannot be read",
            remedy="A model folder needs the fast tokenizer's file",
            private=f"{file}: {error}",
        ) from error
