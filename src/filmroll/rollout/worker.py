"""The worker: plays episodes against an engine and returns trajectories."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio.to_thread
import msgspec

from filmroll.errors import RenderError
from filmroll.render import Rendered, Renderer
from filmroll.render.messages import Message
from filmroll.rollout.client import EngineClient
from filmroll.rollout.environment import Environment, Episode
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.wire.generate import SamplingParams
from filmroll.wire.receipt import Receipt


class RolloutTask(msgspec.Struct, frozen=True):
    """One rollout to play: its name in the run, and the seed of its episode."""

    name: str
    seed: int
    sampling: SamplingParams
    max_turns: int = 64


class Played(msgspec.Struct, frozen=True):
    """A finished rollout and what its requests weighed."""

    trajectory: Trajectory
    request_bytes: int = 0
    requests: int = 0
    images_sent: int = 0
    receipt: Receipt = Receipt()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was said in one turn, by the engine or by a teacher."""

    token_ids: list[int]
    logprobs: list[float]
    version: int
    finish_reason: str
    request_bytes: int = 0
    receipt: Receipt = field(default_factory=Receipt)


Answerer = Callable[[Rendered, Episode, int], Awaitable[_Answer]]


class Worker:
    """Runs any number of rollouts at once on one event loop; image writes go to threads."""

    def __init__(self, environment: Environment, renderer: Renderer, client: EngineClient) -> None:
        self.environment = environment
        self.renderer = renderer
        self.client = client

    async def rollout(self, task: RolloutTask) -> Played:
        """Play one episode to its end, turn by turn, each turn extending the one before."""
        sampling = msgspec.structs.replace(task.sampling, stop_token_ids=self.renderer.stop_token_ids)

        async def sampled(prompt: Rendered, _episode: Episode, turn: int) -> _Answer:
            done = await self.client.generate(prompt, sampling, request_id=f"{task.name}/turn_{turn}")
            return _Answer(
                done.token_ids, done.logprobs, done.version, done.finish_reason, done.request_bytes, done.receipt
            )

        return await self._play(task, sampled)

    async def demonstrate(self, task: RolloutTask) -> Played:
        """The same episode with a teacher's answers, as a trajectory to learn from."""

        async def taught(_prompt: Rendered, episode: Episode, _turn: int) -> _Answer:
            tokens = self._answer_tokens(episode.demonstration())
            return _Answer(tokens, [0.0] * len(tokens), -1, "demonstration")

        return await self._play(task, taught)

    async def _play(self, task: RolloutTask, answerer: Answerer) -> Played:
        trajectory = Trajectory(task.name, self.renderer.family.placeholders.pad)
        request_bytes = requests = images_sent = 0
        receipt = Receipt()
        episode = self.environment.episode(task.seed)
        try:
            prompt = await self._opening(episode)
            node = trajectory.add_prompt(ROOT, prompt.logical, prompt.images)
            for turn in range(task.max_turns):
                said = await answerer(prompt, episode, turn)
                request_bytes, requests = request_bytes + said.request_bytes, requests + 1
                images_sent, receipt = images_sent + len(prompt.images), receipt + said.receipt
                node = trajectory.add_sampled(
                    node,
                    said.token_ids,
                    said.logprobs,
                    temperature=task.sampling.temperature,
                    version=said.version,
                    finish_reason=said.finish_reason,
                )
                messages = await episode.reply(self.renderer.parse(said.token_ids))
                if not messages:
                    break
                prompt, node = await self._extend(trajectory, node, prompt, said.token_ids, messages)
            _score(trajectory, episode)
        finally:
            await episode.close()
        return Played(trajectory, request_bytes, requests, images_sent, receipt)

    async def _opening(self, episode: Episode) -> Rendered:
        messages = await anyio.to_thread.run_sync(self.renderer.ingest, await episode.begin())
        return self.renderer.render(messages)

    async def _extend(
        self,
        trajectory: Trajectory,
        node: int,
        prompt: Rendered,
        completion: Sequence[int],
        messages: Sequence[Message],
    ) -> tuple[Rendered, int]:
        """The next prompt, and the node of what it adds."""
        stored = await anyio.to_thread.run_sync(self.renderer.ingest, messages)
        longer = self.renderer.bridge(prompt, completion, stored)
        new_tokens = longer.logical[len(prompt.logical) + len(completion) :]
        return longer, trajectory.add_prompt(node, new_tokens, longer.images[len(prompt.images) :])

    def _answer_tokens(self, answer: str) -> list[int]:
        """The answer's tokens as a model would sample them, its stop token included."""
        rendered = self.renderer.render(
            [{"role": "user", "content": ""}, {"role": "assistant", "content": answer}], add_generation_prompt=False
        )
        tokens = [token for token, sampled in zip(rendered.logical, rendered.sampled, strict=True) if sampled]
        if not tokens:
            raise RenderError("the text renderer does not say which tokens of an answer are sampled")
        return tokens


def _score(trajectory: Trajectory, episode: Episode) -> None:
    score = episode.score()
    trajectory.reward = score.reward
    trajectory.metrics = score.metrics
    trajectory.expected = score.expected
    trajectory.answer = score.answer
