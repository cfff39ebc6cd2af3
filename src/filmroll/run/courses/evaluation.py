"""Evaluation: rollouts without training, written down as those of a training run are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from filmroll.durable import whole_folder
from filmroll.engine.weights import version_folder
from filmroll.families import Family
from filmroll.render.tokenizer import TextTokenizer
from filmroll.run.config import Config
from filmroll.run.courses.contest import Weights
from filmroll.run.courses.course import Observer, course, ready_model
from filmroll.run.courses.exam import Sitting, examine
from filmroll.run.courses.standing import Standing
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
    """Writes down the batches of an exam as they are played."""

    def __init__(self, config: Config, run: RunDirectory, family: Family, players: Players, observe: Observer) -> None:
        self._config = config
        self._run = run
        self._family = family
        self._players = players
        self._observe = observe
        self._tokenizer = TextTokenizer.load(model_dir(run, config))
        self._seen = run.images(config)

    async def go(self, version: int | None) -> Standing:
        return await examine(self._config, self._players, version, self._note)

    def _note(self, sitting: Sitting) -> None:
        step, broken = sitting.number, sitting.groups.broken
        for error in broken:
            self._run.event("rollout_failed", step=step, error=str(error))
        played = [one for group in sitting.groups.played for one in group]
        row = eval_row(step, played, len(broken), self._family, self._seen, sitting.seconds)
        row |= {
            "episodes": len(sitting.episodes),
            "engine_restarts": self._players.engines.restarts,
            "memory": memory(self._players.engines.memory(), self._players.worker),
            "seconds": {"rollout": sitting.seconds, "total": sitting.seconds},
        }
        self._run.record(step, [rollout_record(one.trajectory, step, self._tokenizer) for one in played])
        # Last, as in every course: what is noted is recorded.
        self._run.metrics(row)
        self._observe(row)


def _take_over(weights: Weights, run: RunDirectory) -> None:
    """The version where this run's engines look for it."""
    theirs, ours = version_folder(weights.run.weights, weights.version), version_folder(run.weights, weights.version)
    with whole_folder(ours) as draft:
        for file in theirs.iterdir():
            link_or_copy(file, draft / file.name)
