"""The rows of metrics.jsonl: what one step did, in numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import msgspec

from filmroll.families import Family
from filmroll.rollout.worker import Played
from filmroll.train.step import StepReport
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import TrainingSample


def warmup_row(
    step: int, made: Sequence[TrainingSample], report: StepReport, memory: dict[str, int], seconds: float
) -> dict[str, Any]:
    """One supervised step."""
    images = sum(len(sample.images) for sample in made)
    return {
        "phase": "warmup",
        "step": step,
        "time": time.time(),
        **_trained(report),
        "images": images,
        "images_per_second": images / seconds,
        "memory": memory,
        "seconds": {"train": report.seconds, "total": seconds},
    }


def rl_row(
    step: int, played: Sequence[Played], failed: int, report: StepReport, family: Family, seen: set[str]
) -> dict[str, Any]:
    """One reinforcement learning step, rollouts and update. `seen` are the images of steps before; it grows."""
    trajectories = [one.trajectory for one in played]
    rewards = [one.reward for one in trajectories]
    distinct = {image.image.sha256: image.image for one in trajectories for image in one.images}
    fresh = [image for digest, image in distinct.items() if digest not in seen]
    seen.update(distinct)
    sent = sum(one.images_sent for one in played)
    return {
        "phase": "rl",
        "step": step,
        "time": time.time(),
        "version": step + 1,
        "reward": fmean(rewards),
        "reward_std": pstdev(rewards),
        **_means([one.metrics for one in trajectories]),
        **_trained(report),
        "rollouts": len(played),
        "rollouts_failed": failed,
        "turns": sum(one.requests for one in played),
        "images": sent,
        "images_unique": len(distinct),
        "request_bytes": sum(one.request_bytes for one in played),
        "images_new": len(fresh),
        "image_bytes": sum(image.nbytes for image in fresh),
        "pixel_bytes": _pixel_bytes(played, family),
        "engine_receipt": msgspec.to_builtins(sum((one.receipt for one in played), Receipt())),
    }


def _trained(report: StepReport) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(report)
    row["trainer_receipt"] = row.pop("receipt")
    row["images_missing"] = len(row.pop("missing"))
    del row["seconds"]
    return row


def _means(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name for one in metrics for name in one}
    return {name: fmean([one[name] for one in metrics if name in one]) for name in sorted(names)}


def _pixel_bytes(played: Sequence[Played], family: Family) -> int:
    """What the same requests and samples would have weighed with float32 pixels in place of references.

    A request carries all images of its conversation so far, a sample each of its images once.
    """
    total = 0
    for one in played:
        seen = 0
        for node in one.trajectory.nodes:
            seen += sum(family.pixel_bytes(one.trajectory.images[index].image) for index in node.images)
            total += seen if node.sampled else 0
        total += seen
    return total
