"""An episode with tools: they stand in the prompt, calls reach the author, and all of it is rendered again whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from filmroll.render import Answer, Renderer, ToolCall
from filmroll.rollout import Environment, Episode, Rewrite, Score
from filmroll.rollout.environment import Reply
from filmroll.rollout.worker import Played, RolloutTask, Worker
from filmroll.wire.generate import SamplingParams
from filmroll.wire.packed import pack, unpack

ZOOM = {
    "type": "function",
    "function": {
        "name": "zoom",
        "description": "Show a part of the picture.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}


def picture(seed: int) -> dict[str, Any]:
    return {"type": "image", "image": np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)}


class Looks(Environment, Episode):
    """Asks what is seen, zooms when it is called, and in the end begins again with all that was said."""

    def __init__(self) -> None:
        self.heard: list[Answer] = []

    def episode(self, seed: int) -> Looks:
        self.played = Looks()
        return self.played

    async def begin(self) -> Sequence[dict[str, Any]]:
        self.tools = [ZOOM]
        return [{"role": "user", "content": [picture(1), {"type": "text", "text": "What is it?"}]}]

    def demonstration(self) -> Any:
        function = {"name": "zoom", "arguments": {"x": len(self.heard)}}
        looking = {"content": "I look.", "tool_calls": [{"type": "function", "function": function}]}
        return looking if len(self.heard) < 2 else "An eye."

    async def reply(self, answer: Answer) -> Reply:
        self.heard.append(answer)
        if answer.tool_calls:
            seen = picture(1 + answer.tool_calls[0].arguments["x"])
            return [{"role": "tool", "content": [seen, {"type": "text", "text": "there"}]}]
        if len(self.heard) == 3:
            return Rewrite([*self.conversation, answer.message, {"role": "user", "content": "Sure?"}])
        return []

    def score(self) -> Score:
        return Score(1.0, expected="eye", answer=self.heard[-1])


@pytest.fixture
def looked(renderer: Renderer) -> tuple[Looks, Played]:
    environment = Looks()
    worker = Worker(environment, renderer, client=None)  # type: ignore[arg-type] - a teacher asks no engine
    played = asyncio.run(worker.demonstrate(RolloutTask("r", 1, SamplingParams())))
    return environment.played, played


def test_calls_reach_the_author_beside_the_text(looked: tuple[Looks, Played]) -> None:
    episode, _ = looked
    assert episode.heard == ["I look.", "I look.", "An eye.", "An eye."]
    assert [answer.tool_calls for answer in episode.heard] == [
        (ToolCall("zoom", {"x": 0}),),
        (ToolCall("zoom", {"x": 1}),),
        (),
        (),
    ]


def test_what_is_rendered_anew_keeps_the_calls(renderer: Renderer, looked: tuple[Looks, Played]) -> None:
    """The rewrite says again all that was said: had a call been lost, it would be a branch of its own."""
    _, played = looked
    trajectory = played.trajectory
    (leaf,) = trajectory.leaves()
    nodes = trajectory.branch(leaf)
    assert [node.sampled for node in nodes] == [False, True, False, True, False, True, False, True]
    text = renderer.tokenizer.decode(trajectory.branch_tokens(nodes).tolist())
    assert text.count('<tool_call>\n{"name": "zoom", "arguments": {"x": ') == 2
    assert '"description": "Show a part of the picture."' in text.partition("What is it?")[0]
    assert len(trajectory.images) == 2
    assert [len(node.images) for node in nodes] == [1, 0, 1, 0, 1, 0, 0, 0]


def test_an_answer_travels_as_a_plain_text(looked: tuple[Looks, Played]) -> None:
    """A score may name the answer that it is about."""
    _, played = looked
    assert type(played.trajectory.answer) is str
    assert unpack(pack(played), Played).trajectory.answer == "An eye."
