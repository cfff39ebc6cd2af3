"""Where a rollout stands: the messages so far, the prompt that they make, and its node in the trajectory."""

from __future__ import annotations

from collections.abc import Sequence

from filmroll.errors import PrefixError
from filmroll.render import Rendered, RendererPool
from filmroll.render.messages import Message
from filmroll.rollout.trajectory import Trajectory


class Conversation:
    """Grows by turns, and can be begun anew; either way the trajectory keeps only what is new.

    `messages` hold references where images were, so that all can be rendered again at any time.
    """

    def __init__(self, renderers: RendererPool, trajectory: Trajectory) -> None:
        self._renderers = renderers
        self._trajectory = trajectory
        self.messages: list[Message] = []
        self.prompt: Rendered
        self.node: int

    async def begin(self, messages: Sequence[Message]) -> None:
        """Render a whole conversation: the first one, or one that takes the place of what was said."""
        await self._render(await self._renderers.ingest(messages))

    async def extend(self, answered: int, said: str, messages: Sequence[Message]) -> None:
        """Go on after the answer at node `answered`, which says `said`, with more messages.

        Where the model's template cannot extend what was sampled token for token, all is rendered
        anew, as a branch of its own.
        """
        stored = await self._renderers.ingest(messages)
        completion = self._trajectory.nodes[answered].token_ids.tolist()
        try:
            longer = await self._renderers.bridge(self.prompt, completion, stored)
        except PrefixError:
            await self._render([*self.messages, _answer(said), *stored])
            return
        new_tokens = longer.logical[len(self.prompt.logical) + len(completion) :]
        self.node = self._trajectory.add_prompt(answered, new_tokens, longer.images[len(self.prompt.images) :])
        self.prompt = longer
        self.messages += [_answer(said), *stored]

    async def _render(self, stored: Sequence[Message]) -> None:
        self.prompt = await self._renderers.render(stored)
        self.node = self._trajectory.add_conversation(self.prompt.logical, self.prompt.images)
        self.messages = list(stored)


def _answer(said: str) -> Message:
    return {"role": "assistant", "content": said}
