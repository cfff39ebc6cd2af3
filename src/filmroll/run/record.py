"""Rollouts written down, one JSON object each: complete for tools, legible for people.

The form is normative in docs/format.md. A record holds all that a trajectory does, each image once
and by reference, and beside it what follows from that: texts, and numbers of expanded tokens.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from filmroll.errors import FilmrollError, RunError
from filmroll.image import ImageRef
from filmroll.render.expand import repeats
from filmroll.render.tokenizer import TextTokenizer
from filmroll.rollout.trajectory import Node, Trajectory, check_trajectory
from filmroll.wire.descriptor import ImageDescriptor

FORMAT: Literal["filmroll-rollout-1"] = "filmroll-rollout-1"
IMAGE = "\ufffc"
"""Stands in the text where an image's placeholders are."""

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Version = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]


class Shown(msgspec.Struct, frozen=True):
    """An image in a turn: its row in the record's table, and where its placeholders begin.

    `offset` counts the turn's own expanded tokens.
    """

    image: int
    offset: int


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """One node of the trajectory; `token_ids` are logical, `tokens` counts them expanded."""

    parent: int
    role: Literal["prompt", "answer"]
    text: str
    tokens: int
    token_ids: list[TokenId]
    images: list[Shown] = []
    token_texts: list[str] | None = None
    logprobs: list[float] | None = None
    temperature: float = 1.0
    version: Version | None = None
    finish_reason: str = ""
    reward: float | None = None


class Record(msgspec.Struct, frozen=True):
    """One rollout. `images` has each distinct descriptor once, all of its fields and its ImageRef's side by side."""

    format: Literal["filmroll-rollout-1"]
    name: str
    step: int
    reward: float
    metrics: dict[str, float]
    expected: str
    answer: str
    pad: TokenId
    images: list[dict[str, Any]]
    turns: list[Turn]

    def trajectory(self) -> Trajectory:
        """The trajectory that was written down."""
        return Trajectory(
            self.name,
            self.pad,
            images=[_descriptor(row) for row in self.images],
            nodes=[_node(turn) for turn in self.turns],
            reward=self.reward,
            metrics=self.metrics,
            expected=self.expected,
            answer=self.answer,
        )


def rollout_record(trajectory: Trajectory, step: int, tokenizer: TextTokenizer) -> dict[str, Any]:
    """A trajectory as one JSON-safe object."""
    record = Record(
        format=FORMAT,
        name=trajectory.name,
        step=step,
        reward=trajectory.reward,
        metrics=trajectory.metrics,
        expected=trajectory.expected,
        answer=trajectory.answer,
        pad=trajectory.pad,
        images=[_row(image) for image in trajectory.images],
        turns=[_turn(trajectory, node, tokenizer) for node in trajectory.nodes],
    )
    made: dict[str, Any] = msgspec.to_builtins(record)
    return made


def read_record(row: object) -> Record:
    """A record from its JSON object, or a RunError: what is returned makes a trajectory that agrees with itself."""
    form = row.get("format") if isinstance(row, dict) else None
    if form != FORMAT:
        raise RunError(f"this is no rollout of the form {FORMAT}: its format is {str(form)[:64]!r}")
    try:
        record = msgspec.convert(row, Record)
        trajectory = check_trajectory(record.trajectory())
    except (msgspec.ValidationError, TypeError) as error:
        raise RunError(f"this is no rollout of the form {FORMAT}: {error}") from None
    except FilmrollError as error:
        raise RunError(f"this rollout does not agree with itself: {error.problem}") from None
    for number, (turn, node) in enumerate(zip(record.turns, trajectory.nodes, strict=True)):
        offsets, tokens = _expanded(trajectory, node)
        if tokens != turn.tokens or offsets != [shown.offset for shown in turn.images]:
            raise RunError(f"this rollout does not agree with itself: turn {number} has {tokens} expanded tokens")
    return record


def _row(image: ImageDescriptor) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(image)
    ref: dict[str, Any] = made.pop("image")
    return ref | made


def _descriptor(row: dict[str, Any]) -> ImageDescriptor:
    rest = dict(row)
    image = {name: rest.pop(name) for name in ImageRef.__struct_fields__ if name in rest}
    return msgspec.convert({"image": image, **rest}, ImageDescriptor)


def _turn(trajectory: Trajectory, node: Node, tokenizer: TextTokenizer) -> Turn:
    offsets, tokens = _expanded(trajectory, node)
    token_ids = node.token_ids.tolist()
    shown = [Shown(image, offset) for image, offset in zip(node.images, offsets, strict=True)]
    text = _text(token_ids, trajectory.pad, tokenizer)
    if node.logprobs is None:
        return Turn(node.parent, "prompt", text, tokens, token_ids, shown, reward=node.reward)
    return Turn(
        node.parent,
        "answer",
        text,
        tokens,
        token_ids,
        token_texts=[tokenizer.decode(token) for token in token_ids],
        # The shortest decimal that is this float32 and no other.
        logprobs=[float(str(logprob)) for logprob in node.logprobs],
        temperature=node.temperature,
        version=node.version,
        finish_reason=node.finish_reason,
        reward=node.reward,
    )


def _node(turn: Turn) -> Node:
    tokens = np.asarray(turn.token_ids, np.int32)
    images = tuple(shown.image for shown in turn.images)
    if turn.role == "prompt":
        return Node(turn.parent, tokens, images, reward=turn.reward)
    return Node(
        turn.parent,
        tokens,
        images,
        logprobs=np.asarray(turn.logprobs or [], np.float32),
        temperature=turn.temperature,
        version=-1 if turn.version is None else turn.version,
        finish_reason=turn.finish_reason,
        reward=turn.reward,
    )


def _expanded(trajectory: Trajectory, node: Node) -> tuple[list[int], int]:
    """Where the node's images begin among its own expanded tokens, and how many those are."""
    counts = repeats(node.token_ids, [trajectory.images[row] for row in node.images], trajectory.pad)
    starts = (counts.cumsum() - counts)[node.token_ids == trajectory.pad]
    return starts.tolist(), int(counts.sum())


def _text(tokens: list[int], pad: int, tokenizer: TextTokenizer) -> str:
    parts, begin = [], 0
    for end in [index for index, token in enumerate(tokens) if token == pad]:
        parts.append(tokenizer.decode(tokens[begin:end]))
        begin = end + 1
    parts.append(tokenizer.decode(tokens[begin:]))
    return IMAGE.join(parts)
