"""From trajectories to training samples: one per branch, no sampled token trained twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from filmroll.families.base import Family
from filmroll.render.expand import expand, repeats
from filmroll.rollout.trajectory import Node, Trajectory
from filmroll.wire.training import LossWeights, PlacedImage, TrainingSample


def samples(
    trajectory: Trajectory,
    family: Family,
    *,
    advantage: float,
    weights: LossWeights,
    scored: Mapping[int, float] | None = None,
) -> list[TrainingSample]:
    """One sample for each branch that has something to train, up to its last token that is trained.

    `scored` holds the advantages of branches with a reward of their own, by leaf. Such a branch
    trains what it shares with nobody; tokens that branches share are trained in the first branch
    that has the rollout's reward, or in the first at all.
    """
    owners = _owners(trajectory)
    made = []
    for number, leaf in enumerate(trajectory.leaves()):
        path = [(trajectory.nodes[index], owners.get(index) == leaf) for index in trajectory.path(leaf)]
        while path and not path[-1][1]:
            path.pop()
        if path:
            own = (scored or {}).get(leaf, advantage)
            made.append(_sample(trajectory, family, f"{trajectory.name}/branch_{number}", path, own, weights))
    return made


def group_advantages(rewards: Sequence[float], *, normalize: bool = True) -> list[float]:
    """GRPO: each reward against its group's mean, in units of the group's standard deviation."""
    values = np.asarray(rewards, np.float64)
    spread = values.std()
    if np.ptp(values) == 0 or spread == 0:
        return [0.0] * len(values)
    return list(((values - values.mean()) / (spread if normalize else 1.0)).tolist())


def branch_advantages(group: Sequence[Trajectory], *, normalize: bool = True) -> list[tuple[float, dict[int, float]]]:
    """The same for rollouts whose branches may have rewards of their own: `advantage` and `scored` for `samples`.

    Every outcome counts once in the group: each rollout's reward, and each reward of a branch.
    """
    outcomes = [(one.reward, _scored(one)) for one in group]
    advantages = iter(
        group_advantages(
            [value for reward, scored in outcomes for value in (reward, *scored.values())], normalize=normalize
        )
    )
    return [(next(advantages), {leaf: next(advantages) for leaf in scored}) for _, scored in outcomes]


def recent(made: Iterable[TrainingSample], version: int, *, most: int) -> list[TrainingSample]:
    """Those in which no token was sampled by a policy of more than so many updates before this version."""

    def age(sample: TrainingSample) -> int:
        sampled = sample.versions[sample.versions >= 0]
        return version - int(sampled.min(initial=version))

    return [sample for sample in made if age(sample) <= most]


def _scored(trajectory: Trajectory) -> dict[int, float]:
    """The branches with a reward of their own, by leaf."""
    rewards = {leaf: trajectory.nodes[leaf].reward for leaf in trajectory.leaves()}
    return {leaf: reward for leaf, reward in rewards.items() if reward is not None}


def _owners(trajectory: Trajectory) -> dict[int, int]:
    """The leaf of the one branch that trains each sampled node."""
    owners: dict[int, int] = {}
    for leaf in sorted(trajectory.leaves(), key=lambda leaf: trajectory.nodes[leaf].reward is not None):
        for index in reversed(trajectory.path(leaf)):
            if index in owners:
                break
            if trajectory.nodes[index].sampled:
                owners[index] = leaf
    return owners


def _sample(
    trajectory: Trajectory,
    family: Family,
    name: str,
    path: Sequence[tuple[Node, bool]],
    advantage: float,
    weights: LossWeights,
) -> TrainingSample:
    nodes = [node for node, _ in path]
    logical = trajectory.branch_tokens(nodes)
    images = trajectory.branch_images(nodes)
    expanded = expand(logical, images, family)
    counts = repeats(logical, images, trajectory.pad)

    def along(values: Iterable[np.ndarray], dtype: type) -> np.ndarray:
        """Per-node arrays joined along the branch and stretched over the placeholders."""
        return np.repeat(np.concatenate(list(values)).astype(dtype), counts)

    return TrainingSample(
        name=name,
        token_ids=expanded.token_ids,
        trained=along((np.full(len(node.token_ids), fresh) for node, fresh in path), np.uint8),
        logprobs=along(
            (np.zeros(len(node.token_ids)) if node.logprobs is None else node.logprobs for node in nodes), np.float32
        ),
        temperatures=along((np.full(len(node.token_ids), node.temperature) for node in nodes), np.float32),
        versions=along((np.full(len(node.token_ids), node.version) for node in nodes), np.int32),
        advantage=advantage,
        weights=weights,
        images=[PlacedImage(image, offset) for image, offset in zip(images, expanded.offsets, strict=True)],
    )
