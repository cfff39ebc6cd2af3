"""Conversations as trajectories, as if the assistant's words had been sampled: what is learnt is marked."""

from __future__ import annotations

from itertools import groupby

from filmroll.dataset.conversation import Conversation, Reader
from filmroll.dataset.rows import Rows
from filmroll.errors import DatasetError, FilmrollError
from filmroll.render import Rendered, Renderer
from filmroll.rollout.trajectory import ROOT, Trajectory


class Examples:
    """The rows of a data set, rendered when they are asked for. Safe to use from several threads."""

    def __init__(self, rows: Rows, reader: Reader, renderer: Renderer, *, last_alone: bool = False) -> None:
        """`last_alone` learns the last of the assistant's messages and reads the others."""
        self._rows = rows
        self._reader = reader
        self._renderer = renderer
        self._last_alone = last_alone

    def __getitem__(self, index: int) -> Trajectory:
        """Its images are in the store by then; an error says which row it is about."""
        name = self._rows.place(index)
        try:
            conversation = self._reader.read(self._rows[index])
            rendered = self._renderer.render(
                conversation.messages, tools=conversation.tools, add_generation_prompt=False
            )
            learnt = list(rendered.sampled)
            if self._last_alone:
                before = self._before_last(conversation, rendered)
                learnt[:before] = [False] * before
            return demonstrated(name, rendered, learnt, self._renderer)
        except FilmrollError as error:
            raise error.about(name) from error

    def _before_last(self, conversation: Conversation, rendered: Rendered) -> int:
        """How many tokens stand before the last of the assistant's answers."""
        messages = conversation.messages
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        before = self._renderer.render(messages[:last], tools=conversation.tools).logical if last else []
        if rendered.logical[: len(before)] != before:
            raise DatasetError(
                "the model's way of writing conversations does not tell where the last answer begins",
                remedy='Learn all of them: data.answers = "all"',
            )
        return len(before)


def demonstrated(name: str, rendered: Rendered, learnt: list[bool], renderer: Renderer) -> Trajectory:
    """A rendered conversation as a trajectory in which the tokens that are learnt count as sampled."""
    trajectory = Trajectory(name, rendered.family.placeholders.pad)
    images = iter(rendered.images)
    at = ROOT
    end = max((place + 1 for place, taught in enumerate(learnt) if taught), default=0)
    # What stands behind the last answer teaches nothing.
    runs = groupby(zip(rendered.logical[:end], learnt[:end], strict=True), key=lambda one: one[1])
    written = 0
    for taught, run in runs:
        tokens = [token for token, _ in run]
        written += len(tokens)
        if taught:
            tokens = renderer.ended(tokens) if written == end else tokens
            at = trajectory.add_sampled(
                at, tokens, [0.0] * len(tokens), temperature=1.0, version=-1, finish_reason="demonstration"
            )
        else:
            at = trajectory.add_prompt(at, tokens, [next(images) for token in tokens if token == trajectory.pad])
    if not any(node.sampled for node in trajectory.nodes):
        raise DatasetError("none of its tokens is the assistant's, so there is nothing to learn")
    return trajectory
