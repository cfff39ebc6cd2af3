"""From trajectories to training samples: one per branch, no sampled token trained twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from filmroll.families.base import Family
from filmroll.render.expand import expand, repeats
from filmroll.rollout.trajectory import Node, Trajectory
from filmroll.wire.training import LossWeights, PlacedImage, TrainingSample


def samples(trajectory: Trajectory, family: Family, *, advantage: float, weights: LossWeights) -> list[TrainingSample]:
    """One sample for each branch; where branches share sampled tokens, the first of them trains those."""
    trained: set[int] = set()
    made = []
    for number, leaf in enumerate(trajectory.leaves()):
        indices = list(trajectory.branch_indices(leaf))[::-1]
        fresh = {index for index in indices if trajectory.nodes[index].sampled} - trained
        if fresh:
            path = [(trajectory.nodes[index], index in fresh) for index in indices]
            made.append(_sample(trajectory, family, f"{trajectory.name}/branch_{number}", path, advantage, weights))
        trained |= fresh
    return made


def group_advantages(rewards: Sequence[float], *, normalize: bool = True) -> list[float]:
    """GRPO: each reward against its group's mean, in units of the group's standard deviation."""
    values = np.asarray(rewards, np.float64)
    spread = values.std()
    if np.ptp(values) == 0 or spread == 0:
        return [0.0] * len(values)
    return list(((values - values.mean()) / (spread if normalize else 1.0)).tolist())


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
