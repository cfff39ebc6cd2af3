"""What of a conversation is learnt: the assistant's tokens and no other, compared with a rendering by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filmroll.dataset.config import DataConfig
from filmroll.dataset.conversation import Reader
from filmroll.dataset.examples import Examples
from filmroll.dataset.rows import open_rows
from filmroll.errors import DatasetError, ImageSourceError, PlaceholderTextError
from filmroll.render import Renderer
from filmroll.train.batches.samples import samples
from filmroll.wire.training import LossWeights, TrainingSample, check_sample
from tests.dataset.conftest import Row, Write, chat

IMAGE = "<|vision_start|>{}<|vision_end|>"
PAD = "<|image_pad|>"


def examples(path: Path, renderer: Renderer, *, last_alone: bool = False, **settings: object) -> Examples:
    rows = open_rows(str(path))
    return Examples(rows, Reader(DataConfig(path="x", **settings), rows.root), renderer, last_alone=last_alone)


def sample(made: Examples, renderer: Renderer, index: int = 0) -> TrainingSample:
    (one,) = samples(made[index], renderer.family, advantage=0.0, weights=LossWeights(cross_entropy=1.0))
    return check_sample(one)


def pieces(one: TrainingSample, renderer: Renderer) -> list[tuple[bool, str]]:
    """The sample's text in runs of tokens that are learnt, or are not."""
    runs: list[tuple[bool, list[int]]] = []
    for token, learnt in zip(one.token_ids.tolist(), one.trained.astype(bool).tolist(), strict=True):
        if not runs or runs[-1][0] != learnt:
            runs.append((learnt, []))
        runs[-1][1].append(token)
    return [(learnt, renderer.tokenizer.decode(tokens)) for learnt, tokens in runs]


def talk() -> Row:
    """Two turns with three pictures, the last of them in the second."""
    first = [
        {"type": "image", "image": "0.png"},
        {"type": "image", "image": "1.png"},
        {"type": "text", "text": "Which?"},
    ]
    second = [{"type": "text", "text": "And this?"}, {"type": "image", "image": "2.png"}]
    return chat(("system", "Be brief."), ("user", first), ("assistant", "A, B"), ("user", second), ("assistant", "C"))


def by_hand(pads: list[int]) -> tuple[str, str]:
    """What stands before the first and the second answer in Qwen3-VL's own way of writing."""
    one, two, three = (IMAGE.format(PAD * number) for number in pads)
    first = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{one}{two}Which?<|im_end|>"
    return (
        f"{first}\n<|im_start|>assistant\n",
        f"\n<|im_start|>user\nAnd this?{three}<|im_end|>\n<|im_start|>assistant\n",
    )


def test_the_assistants_tokens_are_learnt_and_no_other(pictures: list[Path], write: Write, renderer: Renderer) -> None:
    one = sample(examples(write([talk()]), renderer), renderer)
    before, between = by_hand([image.length for image in one.images])
    assert pieces(one, renderer) == [(False, before), (True, "A, B<|im_end|>"), (False, between), (True, "C<|im_end|>")]
    assert one.weights == LossWeights(cross_entropy=1.0)
    assert one.advantage == 0
    assert not one.trained[np.isin(one.token_ids, renderer.family.placeholders.unsampled)].any()


def test_the_last_answer_alone(pictures: list[Path], write: Write, renderer: Renderer) -> None:
    one = sample(examples(write([talk()]), renderer, last_alone=True), renderer)
    before, between = by_hand([image.length for image in one.images])
    assert pieces(one, renderer) == [(False, f"{before}A, B<|im_end|>{between}"), (True, "C<|im_end|>")]


def test_images_stand_where_their_placeholders_are_and_once_in_the_store(
    pictures: list[Path], write: Write, renderer: Renderer
) -> None:
    made = examples(write([talk(), talk()]), renderer)
    one, two = sample(made, renderer), sample(made, renderer, 1)
    for image, path in zip(one.images, pictures, strict=True):
        assert (one.token_ids[image.offset : image.end] == renderer.family.placeholders.pad).all()
        # A plain PNG keeps its bytes.
        assert renderer.store.read(image.descriptor.image) == path.read_bytes()
    assert one.images == two.images
    assert len(list((Path(renderer.store.shelf.root)).rglob("*.png"))) == 3


def test_tool_calls_are_learnt_and_their_results_are_not(write: Write, renderer: Renderer) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "door"}}}
    row = chat(("user", "Where am I?"))
    row["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a door"},
        {"role": "assistant", "content": "At a door."},
    ]
    runs = pieces(sample(examples(write([{**row, "tools": [tool]}]), renderer), renderer), renderer)
    assert [learnt for learnt, _ in runs] == [False, True, False, True]
    assert '"description"' in runs[0][1]
    assert '{"name": "look", "arguments": {"at": "door"}}' in runs[1][1]
    assert runs[1][1].endswith("<|im_end|>")
    assert "a door" in runs[2][1]
    assert runs[3][1] == "At a door.<|im_end|>"


def test_an_error_says_which_row_it_is_about(pictures: list[Path], write: Write, renderer: Renderer) -> None:
    wrong = [
        (chat(("user", "x <|image_pad|>"), ("assistant", "A")), PlaceholderTextError),
        (chat(("user", [{"type": "image", "image": "none.png"}]), ("assistant", "A")), ImageSourceError),
        ("{", DatasetError),
    ]
    made = examples(write([talk(), *(row for row, _ in wrong)]), renderer)
    for line, (_, kind) in enumerate(wrong, 2):
        with pytest.raises(kind, match=rf"chats\.jsonl:{line}: "):
            made[line - 1]
