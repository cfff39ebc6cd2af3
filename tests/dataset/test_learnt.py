"""What is learnt of a conversation, in every way in which the house writes one: what the model would have sampled."""
# ruff: noqa: F811 - fixtures have the names that tests ask for

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataset.conftest import Write, chat
from tests.dataset.test_examples import examples, pieces, sample
from tests.families.conftest import built  # noqa: F401
from tests.families.test_turns import KNOWN, Load, checkpoint, load  # noqa: F401

EARLIER = {
    "glm4v_moe-released": "\n<think></think>\n{}",
    "idefics3": " {}",
    "smolvlm-spelled_markers": " {}",
    "llava_onevision": "\n{}",
    "kimi-k2.5": "</think>{}",
}
"""What stands around an answer's words that a model says itself, where that is anything."""
LAST = EARLIER | dict.fromkeys(("qwen3.5", "qwen3.6"), "\n</think>\n\n{}")
"""The same of the last answer: in earlier ones some templates drop reasoning."""


@pytest.mark.parametrize("known", KNOWN)
def test_words_and_the_end_of_each_answer_are_learnt_and_nothing_else(
    pictures: list[Path], write: Write, load: Load, known: str
) -> None:
    renderer = load(known)
    shown = [{"type": "image", "image": path.name} for path in pictures]
    row = chat(
        ("user", [shown[0], shown[1], {"type": "text", "text": "Which?"}]),
        ("assistant", [{"type": "text", "text": "Red, green."}]),
        ("user", [shown[2], {"type": "text", "text": "And this?"}]),
        ("assistant", [{"type": "text", "text": "Blue."}]),
    )
    one = sample(examples(write([row]), renderer), renderer)
    assert [len(one.images), len(pieces(one, renderer))] == [3, 4]
    end = renderer.tokenizer.decode(renderer.stop_token_ids[:1])
    assert [text for learnt, text in pieces(one, renderer) if learnt] == [
        EARLIER.get(known, "{}").format("Red, green.") + end,
        LAST.get(known, "{}").format("Blue.") + end,
    ]
