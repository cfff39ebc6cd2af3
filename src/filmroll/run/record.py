"""Rollouts written down for people: what was shown, said and sampled, with the images by reference."""

from __future__ import annotations

from typing import Any

import msgspec

from filmroll.render.expand import repeats
from filmroll.render.tokenizer import TextTokenizer
from filmroll.rollout.trajectory import Node, Trajectory

IMAGE = "\ufffc"
"""Stands in the text where an image's placeholders are."""


def rollout_record(trajectory: Trajectory, step: int, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The first branch of a trajectory as one JSON-safe object."""
    leaf = trajectory.leaves()[0]
    turns, start = [], 0
    for node in trajectory.branch(leaf):
        turn, length = _turn(trajectory, node, start, tokenizer)
        turns.append(turn)
        start += length
    return {
        "name": trajectory.name,
        "step": step,
        "reward": trajectory.reward,
        "metrics": trajectory.metrics,
        "expected": trajectory.expected,
        "answer": trajectory.answer,
        "turns": turns,
    }


def _turn(trajectory: Trajectory, node: Node, start: int, tokenizer: TextTokenizer) -> tuple[dict[str, Any], int]:
    images = [trajectory.images[index] for index in node.images]
    counts = repeats(node.token_ids, images, trajectory.pad)
    offsets = (counts.cumsum() - counts + start)[node.token_ids == trajectory.pad]
    turn: dict[str, Any] = {
        "role": "answer" if node.sampled else "prompt",
        "text": _text(node, trajectory.pad, tokenizer),
        "tokens": int(counts.sum()),
        "version": node.version if node.sampled else None,
        "images": [
            {**msgspec.to_builtins(image.image), "tokens": image.tokens, "offset": int(offset)}
            for image, offset in zip(images, offsets, strict=True)
        ],
    }
    if node.logprobs is not None:
        turn["token_ids"] = node.token_ids.tolist()
        turn["token_texts"] = [tokenizer.decode(token) for token in turn["token_ids"]]
        turn["logprobs"] = [round(float(value), 6) for value in node.logprobs]
        turn["finish_reason"] = node.finish_reason
    return turn, int(counts.sum())


def _text(node: Node, pad: int, tokenizer: TextTokenizer) -> str:
    parts, begin = [], 0
    tokens = node.token_ids.tolist()
    for end in [index for index, token in enumerate(tokens) if token == pad]:
        parts.append(tokenizer.decode(tokens[begin:end]))
        begin = end + 1
    parts.append(tokenizer.decode(tokens[begin:]))
    return IMAGE.join(parts)
