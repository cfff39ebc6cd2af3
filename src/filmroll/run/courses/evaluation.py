"""Evaluation: rollouts without training, written down as those of a training run are."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from filmroll.durable import whole_folder
from filmroll.engine.weights import version_folder
from filmroll.errors import DiskFullError, FilmrollError, RunError
from filmroll.families import Family
from filmroll.render.tokenizer import TextTokenizer
from filmroll.rollout.worker import Played, RolloutTask
from filmroll.run.config import Config
from filmroll.run.courses.contest import Weights
from filmroll.run.courses.course import Observer, course, ready_model
from filmroll.run.courses.standing import Standing, standing
from filmroll.run.crew.crew import memory, started_engines, started_players
from filmroll.run.crew.players import Players
from filmroll.run.crew.served import Served
from filmroll.run.directory import RunDirectory
from filmroll.run.export import link_or_copy
from filmroll.run.members.member import Here
from filmroll.run.members.names import engine_names
from filmroll.run.members.roles import model_dir
from filmroll.run.metrics import eval_row
from filmroll.run.processes.ending import Ending
from filmroll.run.record import rollout_record
from filmroll.wire.generate import SamplingParams


def evaluate(
    config: Config,
    run: RunDirectory,
    observe: Observer,
    *,
    weights: Weights | None = None,
    ending: Ending | None = None,
) -> Standing:
    """Play the configured episodes, with these weights where they are not the model folder's own."""
    version = None if weights is None else weights.version
    ending = ending or Ending()
    with course(run, "eval", ending=ending, model=config.model, version=version, chance=config.environment.chance):
        family = ready_model(run, config)
        if weights is not None:
            _take_over(weights, run)
        found = ending.run(_evaluate(config, run, family, observe, version))
        run.note("summary.json", found.row())
        run.event("evaluated", **found.row())
    return found


async def _evaluate(
    config: Config, run: RunDirectory, family: Family, observe: Observer, version: int | None
) -> Standing:
    async with _players(run, config) as players:
        if version is not None:
            await players.update(version)
        return await Evaluation(config, run, family, players, observe).go(version)


@asynccontextmanager
async def _players(run: RunDirectory, config: Config) -> AsyncIterator[Players]:
    """A worker, and engines of the run's own or those that are served already."""
    async with AsyncExitStack() as stack:
        served = config.eval.urls
        starter = Here(run, config, () if served else engine_names(config))
        engines = Served(served) if served else await started_engines(run, config, stack, starter)
        players = await started_players(run, config, engines, stack, starter)
        await players.connect()
        yield players


class Evaluation:
    """Plays episodes in batches; which ones follows from the seed."""

    def __init__(self, config: Config, run: RunDirectory, family: Family, players: Players, observe: Observer) -> None:
        self._config = config
        self._run = run
        self._family = family
        self._players = players
        self._observe = observe
        self._tokenizer = TextTokenizer.load(model_dir(run, config))
        self._seen = run.images(config)
        self._sampling = SamplingParams(
            max_tokens=config.sampling.max_tokens,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
            top_k=config.sampling.top_k,
        )

    async def go(self, version: int | None) -> Standing:
        began, settings = time.perf_counter(), self._config.eval
        episodes: list[list[Played]] = []
        failed = 0
        for step, first in enumerate(range(0, settings.episodes, settings.batch)):
            numbers = range(first, min(first + settings.batch, settings.episodes))
            batch, broken = await self._batch(step, numbers)
            episodes += batch
            failed += broken
        return standing(
            [[one.trajectory for one in episode] for episode in episodes],
            passes=settings.passes,
            model=self._config.model,
            version=version,
            failed=failed,
            seconds=time.perf_counter() - began,
        )

    async def _batch(self, step: int, numbers: range) -> tuple[list[list[Played]], int]:
        """Some episodes: their rollouts as far as they could be played, and how many could not."""
        began = time.perf_counter()
        samples = range(self._config.eval.samples)
        plays = [[self._players.rollout(self._task(number, sample)) for sample in samples] for number in numbers]
        groups = await asyncio.gather(*(asyncio.gather(*group, return_exceptions=True) for group in plays))
        broken = [one for group in groups for one in group if isinstance(one, BaseException)]
        for error in broken:
            if not isinstance(error, FilmrollError) or isinstance(error, RunError | DiskFullError):
                raise error
            self._run.event("rollout_failed", step=step, error=str(error))
        batch = [[one for one in group if isinstance(one, Played)] for group in groups]
        played = [one for group in batch for one in group]
        if 2 * len(broken) > len(numbers) * len(samples):
            raise RunError(
                f"{len(broken)} of {len(numbers) * len(samples)} rollouts failed, the first with: {broken[0]}"
            )
        seconds = time.perf_counter() - began
        row = eval_row(step, played, len(broken), self._family, self._seen, seconds)
        row |= {
            "episodes": len(numbers),
            "engine_restarts": self._players.engines.restarts,
            "memory": memory(self._players.engines.memory(), self._players.worker),
            "seconds": {"rollout": seconds, "total": seconds},
        }
        self._run.record(step, [rollout_record(one.trajectory, step, self._tokenizer) for one in played])
        # Last, as in every course: what is noted is recorded.
        self._run.metrics(row)
        self._observe(row)
        return batch, len(broken)

    def _task(self, number: int, sample: int) -> RolloutTask:
        """All rollouts of an episode are shown the same, and no episode of training is among them."""
        key = f"{self._config.seed}/eval/{number}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        return RolloutTask(f"episode_{number}/rollout_{sample}", seed, self._sampling, self._config.rl.max_turns)


def _take_over(weights: Weights, run: RunDirectory) -> None:
    """The version where this run's engines look for it."""
    theirs, ours = version_folder(weights.run.weights, weights.version), version_folder(run.weights, weights.version)
    with whole_folder(ours) as draft:
        for file in theirs.iterdir():
            link_or_copy(file, draft / file.name)
