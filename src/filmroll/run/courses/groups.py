"""Rollouts played together: groups of those that are shown the same episode."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from filmroll.errors import DiskFullError, FilmrollError, RunError
from filmroll.rollout.worker import Played, RolloutTask
from filmroll.run.crew.players import Players


@dataclass(frozen=True, slots=True)
class Groups:
    """The rollouts of each episode as far as they could be played, and why others could not."""

    played: list[list[Played]]
    broken: list[FilmrollError]


async def play(players: Players, episodes: Sequence[Sequence[RolloutTask]]) -> Groups:
    """Play them all at once. What no rollout can help, a lost process or a full disk, is raised."""
    plays = [[players.rollout(task) for task in episode] for episode in episodes]
    groups = await asyncio.gather(*(asyncio.gather(*group, return_exceptions=True) for group in plays))
    broken = []
    for error in [one for group in groups for one in group if isinstance(one, BaseException)]:
        if not isinstance(error, FilmrollError) or isinstance(error, RunError | DiskFullError):
            raise error
        broken.append(error)
    return Groups([[one for one in group if isinstance(one, Played)] for group in groups], broken)


def episode_seed(*place: object) -> int:
    """The seed of the episode that has this place in a run."""
    digest = hashlib.sha256("/".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
