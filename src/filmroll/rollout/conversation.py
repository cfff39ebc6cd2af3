"""Where a rollout stands: the messages so far, the prompt that they make, and its node in the trajectory."""

from __future__ import annotations

from collections.abc import Sequence

from filmroll.errors import PrefixError
from filmroll.render import Answer, Rendered, RendererPool
from filmroll.render.messages import Message
from filmroll.rollout.environment import Tools
from filmroll.rollout.trajectory import Trajectory


class Conversation:
    """Grows by turns, and can be begun anew; either way the trajectory keeps only what is new.

    `messages` hold references where images were, so that all can be rendered again at any time.
    """

    def __init__(self, renderers: RendererPool, trajectory: Trajectory) -> None:
        self._renderers = renderers
        self._trajectory = trajectory
        self.messages: list[Message] = []
        self.tools: Tools | None = None
        self.prompt: Rendered
        self.node: int

    async def begin(self, messages: Sequence[Message], tools: Tools | None) -> None:
        """Render a whole conversation: the first one, or one that takes the place of what was said."""
        self.tools = tools
        await self._render(await self._renderers.ingest(messages, tools=tools))

    def heard(self, answered: int) -> Answer:
        """What the answer at that node says to the prompt, which it follows."""
        tokens = self._trajectory.nodes[answered].token_ids.tolist()
        return self._renderers.renderer.parse(tokens, prompt=self.prompt, tools=self.tools)

    async def extend(self, answered: int, said: Answer, messages: Sequence[Message]) -> None:
        """Go on after the answer at node `answered`, which says `said`, with more messages.

        Where the model's template cannot extend what was sampled token for token, all is rendered
        anew, as a branch of its own: the answer with its reasoning and its tool calls, as far as the
        template writes them of an earlier turn.
        """
        stored = await self._renderers.ingest(messages)
        completion = self._trajectory.nodes[answered].token_ids.tolist()
        try:
            longer = await self._renderers.bridge(self.prompt, completion, stored, tools=self.tools)
        except PrefixError:
            await self._render([*self.messages, said.message, *stored])
            return
        new_tokens = longer.logical[len(self.prompt.logical) + len(completion) :]
        self.node = self._trajectory.add_prompt(answered, new_tokens, longer.images[len(self.prompt.images) :])
        self.prompt = longer
        self.messages += [said.message, *stored]

    async def _render(self, stored: Sequence[Message]) -> None:
        self.prompt = await self._renderers.render(stored, tools=self.tools)
        self.node = self._trajectory.add_conversation(self.prompt.logical, self.prompt.images)
        self.messages = list(stored)
