"""What the rollouts of an evaluation add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from filmroll.rollout.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Standing:
    """The mean reward with its standard error, and how often an episode is passed in k tries."""

    model: str
    version: int | None
    """Which of a run's weights; none where the model's folder has its own."""
    reward: float
    reward_error: float | None
    """Rollouts of one episode are no independent draws: it is that of the episodes' means. None for one episode."""
    pass_at: dict[int, float]
    episodes: int
    rollouts: int
    failed: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        row = asdict(self)
        return row | {"pass_at": {str(k): share for k, share in self.pass_at.items()}}

    def words(self) -> str:
        error = "" if self.reward_error is None else f" \N{PLUS-MINUS SIGN} {self.reward_error:.3f}"
        passed = ", ".join(f"pass@{k} {share:.3f}" for k, share in self.pass_at.items())
        failed = f", {self.failed} rollouts failed" if self.failed else ""
        return f"mean reward {self.reward:.3f}{error} over {self.episodes} episodes, {passed}{failed}"


def standing(
    episodes: Sequence[Sequence[Trajectory]],
    *,
    passes: float,
    model: str,
    version: int | None,
    failed: int,
    seconds: float,
) -> Standing:
    """Of the rollouts of each episode; an episode all of whose rollouts failed counts nowhere."""
    played = [episode for episode in episodes if episode]
    means = [fmean(one.reward for one in episode) for episode in played]
    passed = [(len(episode), sum(one.reward >= passes for one in episode)) for episode in played]
    rollouts = [one for episode in played for one in episode]
    return Standing(
        model=model,
        version=version,
        reward=fmean(means),
        reward_error=stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
        pass_at=pass_at(passed),
        episodes=len(played),
        rollouts=len(rollouts),
        failed=failed,
        seconds=seconds,
        metrics=_means([one.metrics for one in rollouts]),
    )


def pass_at(passed: Sequence[tuple[int, int]]) -> dict[int, float]:
    """For k = 1, 2, 4 ... and the most: how likely at least one of k rollouts of an episode passes.

    `passed` has an episode's rollouts and how many of them passed; of k from those the share without
    any that passed is drawn without replacement, so no rollout counts twice. Episodes with fewer than
    k rollouts do not count for k.
    """
    most = max((rollouts for rollouts, _ in passed), default=0)
    ks = sorted({*(2**power for power in range(most.bit_length())), most} - {0})
    return {
        k: fmean(
            1 - math.comb(rollouts - good, k) / math.comb(rollouts, k) for rollouts, good in passed if rollouts >= k
        )
        for k in ks
    }


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for one in metrics for name in one})
    return {name: fmean(one[name] for one in metrics if name in one) for name in names}
