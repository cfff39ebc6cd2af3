"""Writing tiny checkpoints, laid out as released ones are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXT_SIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""What a tiny language model is, in the words that most configurations share."""


def byte_tokenizer(
    specials: Sequence[str], chat_template: str, named: dict[str, Any], *, merges: Sequence[tuple[str, str]] = ()
) -> Any:
    """A tokenizer in which every byte is a token, then what `merges` make, then the special tokens, in order.

    Merges are spelled in the letters of byte-level BPE, in which a newline is Ċ and a space Ġ. `named`
    are what PreTrainedTokenizerFast takes: eos_token, pad_token, extra_special_tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=chat_template, **named)


def token_ids(tokenizer: Any, names: dict[str, str]) -> dict[str, int]:
    """The ids of special tokens under the names that a config gives them."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def write_checkpoint(folder: Path, model: Any, tokenizer: Any, **files: dict[str, Any]) -> None:
    """A model, its tokenizer, and JSON files by name: preprocessor_config={...} and the like.

    `model` is a callable that makes the model, so that its random weights are the same every time.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model().float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2))
