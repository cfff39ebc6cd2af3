"""The rows of metrics.jsonl: what one step did, in numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import msgspec

from filmroll.families import Family
from filmroll.image import ImageRef
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


def sft_row(
    step: int, made: Sequence[TrainingSample], report: StepReport, family: Family, seen: set[str], seconds: float
) -> dict[str, Any]:
    """One step on conversations that were given. `seen` are the images of steps before; it grows."""
    images = [placed.descriptor.image for sample in made for placed in sample.images]
    return {
        "phase": "sft",
        "step": step,
        "time": time.time(),
        **_trained(report),
        "images": len(images),
        **_files(images, seen),
        "pixel_bytes": sum(map(family.pixel_bytes, images)),
        "images_per_second": len(images) / seconds,
    }


def rl_row(
    step: int, played: Sequence[Played], failed: int, report: StepReport, family: Family, seen: set[str]
) -> dict[str, Any]:
    """One reinforcement learning step, rollouts and update. `seen` are the images of steps before; it grows."""
    return {
        "phase": "rl",
        "step": step,
        "time": time.time(),
        "version": step + 1,
        **_rewards(played),
        **_trained(report),
        **_played(played, failed, seen),
        "pixel_bytes": _pixel_bytes(played, family),
    }


def eval_row(
    step: int, played: Sequence[Played], failed: int, family: Family, seen: set[str], seconds: float
) -> dict[str, Any]:
    """Some episodes of an evaluation. `seen` are the images of episodes before; it grows."""
    row = _played(played, failed, seen)
    return {
        "phase": "eval",
        "step": step,
        "time": time.time(),
        **_rewards(played),
        **row,
        "images_per_second": row["images"] / seconds,
        "pixel_bytes": _pixel_bytes(played, family, trained=False),
    }


def _rewards(played: Sequence[Played]) -> dict[str, Any]:
    rewards = [one.trajectory.reward for one in played]
    means = _means([one.trajectory.metrics for one in played])
    return {"reward": fmean(rewards), "reward_std": pstdev(rewards), "metrics": means}


def _played(played: Sequence[Played], failed: int, seen: set[str]) -> dict[str, Any]:
    return {
        "rollouts": len(played),
        "rollouts_failed": failed,
        "turns": sum(one.requests for one in played),
        "images": sum(one.images_sent for one in played),
        **_files([image.image for one in played for image in one.trajectory.images], seen),
        "request_bytes": sum(one.request_bytes for one in played),
        "engine_receipt": msgspec.to_builtins(sum((one.receipt for one in played), Receipt())),
    }


def _files(images: Sequence[ImageRef], seen: set[str]) -> dict[str, int]:
    """How many files these are, and how many of them are new."""
    distinct = {image.sha256: image for image in images}
    fresh = [image for digest, image in distinct.items() if digest not in seen]
    seen.update(distinct)
    return {
        "images_unique": len(distinct),
        "images_new": len(fresh),
        "image_bytes": sum(image.nbytes for image in fresh),
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


def _pixel_bytes(played: Sequence[Played], family: Family, *, trained: bool = True) -> int:
    """What the same requests and samples would have weighed with float32 pixels in place of references.

    A request carries all images of its conversation so far, a sample each of its images once.
    """
    total = 0
    for one in played:
        seen = 0
        for node in one.trajectory.nodes:
            seen += sum(family.pixel_bytes(one.trajectory.images[index].image) for index in node.images)
            total += seen if node.sampled else 0
        total += seen if trained else 0
    return total
