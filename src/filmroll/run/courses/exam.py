"""Held-out episodes that a policy plays as it stands: which ones follows from the seed, and none is trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from filmroll.errors import RunError
from filmroll.rollout.worker import RolloutTask
from filmroll.run.config import Config
from filmroll.run.courses.groups import Groups, episode_seed, play
from filmroll.run.courses.standing import Standing, standing
from filmroll.run.crew.players import Players


@dataclass(frozen=True, slots=True)
class Sitting:
    """Some of an exam's episodes, played together."""

    number: int
    episodes: range
    groups: Groups
    seconds: float


async def examine(config: Config, players: Players, version: int | None, note: Callable[[Sitting], None]) -> Standing:
    """Play the episodes of `[eval]`, so many at a time, and note each batch of them.

    A rollout that fails counts nowhere; more than half of a batch are a RunError. The policy must not change meanwhile.
    """
    began, settings = time.perf_counter(), config.eval
    sittings = []
    for number, first in enumerate(range(0, settings.episodes, settings.batch)):
        episodes = range(first, min(first + settings.batch, settings.episodes))
        started = time.perf_counter()
        groups = await play(players, [_tasks(config, episode) for episode in episodes])
        asked = len(episodes) * settings.samples
        if 2 * len(groups.broken) > asked:
            raise RunError(f"{len(groups.broken)} of {asked} rollouts failed, the first with: {groups.broken[0]}")
        sittings.append(Sitting(number, episodes, groups, time.perf_counter() - started))
        note(sittings[-1])
    return standing(
        [[one.trajectory for one in group] for sitting in sittings for group in sitting.groups.played],
        passes=settings.passes,
        model=config.model,
        version=version,
        failed=sum(len(sitting.groups.broken) for sitting in sittings),
        seconds=time.perf_counter() - began,
    )


def _tasks(config: Config, episode: int) -> list[RolloutTask]:
    """All rollouts of an episode are shown the same, and no episode of training is among them."""
    seed = episode_seed(config.seed, "eval", episode)
    return [
        RolloutTask(f"episode_{episode}/rollout_{sample}", seed, config.sampling.params(), config.rl.max_turns)
        for sample in range(config.eval.samples)
    ]
