"""A checkpoint's tokenizer.json as text renderers want it, without transformers or torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from filmroll.families.tokenizer import read_tokenizer
from filmroll.render.markup import SEAM

Offsets = list[tuple[int, int]]


class TextTokenizer:
    """Encodes and decodes exactly as the checkpoint's fast tokenizer does, but for seams.

    What stands on both sides of a seam is encoded apart, so that nothing across it becomes one token.
    """

    def __init__(self, tokenizer: Tokenizer, name_or_path: str) -> None:
        self._tokenizer = tokenizer
        self.name_or_path = name_or_path
        self.unk_token_id: int | None = None
        self.eos_token_id: int | None = None

    @classmethod
    def load(cls, model_dir: Path) -> TextTokenizer:
        tokenizer = read_tokenizer(model_dir)
        # Some files ask for it; a prompt is neither cut nor filled up, as transformers does neither unless told to.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, str(model_dir))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        # In a batch, if only of one, because that lets go of the interpreter; fast, because it leaves out offsets.
        pieces = self._tokenizer.encode_batch_fast(text.split(SEAM), add_special_tokens=add_special_tokens)
        return [token for piece in pieces for token in piece.ids]

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        if isinstance(tokens, str):
            return self._tokenizer.token_to_id(tokens)
        return [self._tokenizer.token_to_id(token) for token in tokens]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Tokens, and where each begins and ends in the text.

        Not under the name by which `renderers` would find it: it would ask for offsets, which cost four
        times as much as the tokens, to tell what of a prompt is whose words, which nobody here asks.
        """
        pieces = text.split(SEAM)
        ids: list[int] = []
        offsets: Offsets = []
        begin = 0
        for piece, encoding in zip(pieces, self._tokenizer.encode_batch(pieces, add_special_tokens=False), strict=True):
            ids += encoding.ids
            offsets += [(begin + first, begin + last) for first, last in encoding.offsets]
            begin += len(piece) + len(SEAM)
        return ids, offsets

    @property
    def special(self) -> dict[str, int]:
        """The special tokens by their spelling."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @property
    def added(self) -> frozenset[int]:
        """The tokens that were added to the vocabulary, special or not, other than white space."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.content.strip())

    @property
    def opening(self) -> list[int]:
        """The tokens that the tokenizer itself puts before a text that does not begin with them."""
        plain, opened = self.encode("a"), self.encode("a", add_special_tokens=True)
        return opened[: -len(plain)] if opened[-len(plain) :] == plain else []

    @property
    def vocab_size(self) -> int:
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size
