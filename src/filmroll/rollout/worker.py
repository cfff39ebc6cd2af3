"""The worker: plays episodes against an engine and returns trajectories."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from filmroll.errors import ConfigError, FilmrollError, RenderError
from filmroll.render import Answer, Rendered, Renderer, RendererPool
from filmroll.render.messages import Message
from filmroll.rollout.client import Completion
from filmroll.rollout.conversation import Conversation
from filmroll.rollout.environment import Environment, Episode, Retry, Rewrite, Score, as_reward
from filmroll.rollout.trajectory import Trajectory
from filmroll.wire.generate import SamplingParams
from filmroll.wire.receipt import Receipt


class RolloutTask(msgspec.Struct, frozen=True):
    """One rollout to play: its name in the run, and the seed of its episode.

    `max_turns` bounds how often the model is asked, retries included.
    """

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


class Sampler(Protocol):
    """Whoever completes a prompt: an EngineClient, or what stands before several."""

    async def generate(
        self, prompt: Rendered, sampling: SamplingParams, *, request_id: str, session: str | None = None
    ) -> Completion: ...


Answerer = Callable[[Rendered, Episode, int], Awaitable[list[_Answer]]]
"""All answers to one prompt: as many as the episode wants tries, in the turn of that number."""


class Worker:
    """Runs any number of rollouts at once on one event loop; images and rendering go to threads."""

    def __init__(self, environment: Environment, renderer: Renderer, client: Sampler) -> None:
        self.environment = environment
        self.renderer = renderer
        self.client = client
        self._renderers = RendererPool(renderer)

    async def rollout(self, task: RolloutTask) -> Played:
        """Play one episode to its end, turn by turn, each turn extending the one before."""
        sampling = msgspec.structs.replace(task.sampling, stop_token_ids=self.renderer.stop_token_ids)

        async def sampled(prompt: Rendered, request_id: str) -> _Answer:
            done = await self.client.generate(prompt, sampling, request_id=request_id, session=task.name)
            return _Answer(
                done.token_ids, done.logprobs, done.version, done.finish_reason, done.request_bytes, done.receipt
            )

        async def tried(prompt: Rendered, episode: Episode, turn: int) -> list[_Answer]:
            name = f"{task.name}/turn_{turn}"
            if episode.tries == 1:
                return [await sampled(prompt, name)]
            tries = range(episode.tries)
            return await asyncio.gather(*(sampled(prompt, f"{name}/try_{number}") for number in tries))

        return await self._play(task, tried)

    async def demonstrate(self, task: RolloutTask) -> Played:
        """The same episode with a teacher's answers, one to a prompt, as a trajectory to learn from."""

        async def taught(_prompt: Rendered, episode: Episode, _turn: int) -> list[_Answer]:
            tokens = await self._renderers.run(self._answer_tokens, episode.demonstration())
            return [_Answer(tokens, [0.0] * len(tokens), -1, "demonstration")]

        return await self._play(task, taught)

    async def _play(self, task: RolloutTask, answerer: Answerer) -> Played:
        episode = self.environment.episode(task.seed)
        try:
            return await _Play(self._renderers, task, episode).to_the_end(answerer)
        finally:
            await episode.close()

    def _answer_tokens(self, answer: str | Message) -> list[int]:
        """The answer's tokens as a model would sample them, its stop token included."""
        whole = {"content": answer} if isinstance(answer, str) else answer
        rendered = self.renderer.render(
            [{"role": "user", "content": ""}, {**whole, "role": "assistant"}], add_generation_prompt=False
        )
        tokens = [token for token, sampled in zip(rendered.logical, rendered.sampled, strict=True) if sampled]
        if not tokens:
            raise RenderError(
                "the model's way of writing conversations does not tell which tokens of an answer are sampled",
                remedy="Mark them by {% generation %} in its chat template, or do without a teacher: warmup.steps = 0",
            )
        return self.renderer.ended(tokens)


class _Play:
    """One rollout while it is played, and what its requests weighed so far."""

    def __init__(self, renderers: RendererPool, task: RolloutTask, episode: Episode) -> None:
        self._task = task
        self._episode = episode
        self._trajectory = Trajectory(task.name, renderers.renderer.family.placeholders.pad)
        self._conversation = Conversation(renderers, self._trajectory)
        self._request_bytes = self._requests = self._images_sent = 0
        self._receipt = Receipt()

    async def to_the_end(self, answerer: Answerer) -> Played:
        conversation = self._conversation
        with self._told_where("its beginning"):
            await conversation.begin(await self._episode.begin(), self._episode.tools)
        for turn in range(self._task.max_turns):
            self._episode.conversation = conversation.messages
            # A client says itself which request an error is about.
            answers = await answerer(conversation.prompt, self._episode, turn)
            with self._told_where(f"turn {turn}"):
                last = turn + 1 == self._task.max_turns
                if not await self._goes_on([self._add(answer) for answer in answers], last=last):
                    break
        with self._told_where("its score"):
            self._score()
        return Played(self._trajectory, self._request_bytes, self._requests, self._images_sent, self._receipt)

    async def _goes_on(self, answered: Sequence[int], *, last: bool) -> bool:
        """Hear what the environment replies; whether it wants another answer. After the last one nothing is shown."""
        best, said = await self._best(answered)
        reply = await self._episode.reply(said)
        if isinstance(reply, Retry | Rewrite):
            self._trajectory.score(best, reply.reward)
            if isinstance(reply, Rewrite) and not last:
                await self._conversation.begin(reply.messages, self._episode.tools)
        elif not reply:
            return False
        elif not last:
            await self._conversation.extend(best, said, reply)
        return True

    @contextmanager
    def _told_where(self, where: str) -> Iterator[None]:
        """An error of filmroll's own says in which rollout, and where in it."""
        try:
            yield
        except FilmrollError as error:
            raise error.about(f"rollout {self._task.name}, {where}") from error.__cause__

    def _add(self, answer: _Answer) -> int:
        self._request_bytes += answer.request_bytes
        self._requests += 1
        self._images_sent += len(self._conversation.prompt.images)
        self._receipt += answer.receipt
        return self._trajectory.add_sampled(
            self._conversation.node,
            answer.token_ids,
            answer.logprobs,
            temperature=self._task.sampling.temperature,
            version=answer.version,
            finish_reason=answer.finish_reason,
        )

    async def _best(self, answered: Sequence[int]) -> tuple[int, Answer]:
        """The answer that the conversation goes on with: its node and what it says."""
        answers = [self._conversation.heard(node) for node in answered]
        if len(answered) == 1:
            return answered[0], answers[0]
        ratings = list(await self._episode.rate(answers))
        if len(ratings) != len(answers):
            raise ConfigError(
                f"{type(self._episode).__name__}.rate gave {len(ratings)} ratings for {len(answers)} answers",
                remedy="It must rate each answer, in order",
            )
        ratings = [as_reward(rating) for rating in ratings]
        best = max(range(len(ratings)), key=ratings.__getitem__)
        for place, (node, rating) in enumerate(zip(answered, ratings, strict=True)):
            if place != best:
                self._trajectory.score(node, rating)
        return answered[best], answers[best]

    def _score(self) -> None:
        score = self._episode.score()
        if not isinstance(score, Score):
            raise ConfigError(
                f"{type(self._episode).__name__}.score gave a {type(score).__name__}",
                remedy="It must give a filmroll.rollout.Score",
            )
        self._trajectory.reward = score.reward
        self._trajectory.metrics = dict(score.metrics)
        # An Answer is a str too, and a trajectory holds plain ones.
        self._trajectory.expected = str(score.expected)
        self._trajectory.answer = str(score.answer)
