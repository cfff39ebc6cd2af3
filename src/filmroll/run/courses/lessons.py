"""From trajectories to what a trainer is given: their images kept, their samples packed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
from anyio import to_thread

from filmroll.families import Family
from filmroll.rollout.trajectory import Trajectory
from filmroll.run.config import Config
from filmroll.run.crew.learner import Learner
from filmroll.run.directory import RunDirectory
from filmroll.run.members.roles import materializer
from filmroll.store import Manifest
from filmroll.train.batches.plan import Plan, plan
from filmroll.train.loading.processed import with_images
from filmroll.train.step import Measured, StepReport, TrainStep
from filmroll.wire.training import MicroBatch, TrainingSample

DEMONSTRATED = -2
"""The policy version of a supervised step: no token was sampled by it."""


class Lessons:
    """The samples of a run on their way to its trainer."""

    def __init__(self, config: Config, run: RunDirectory, family: Family, learner: Learner) -> None:
        self._config = config
        self._run = run
        self._family = family
        self._learner = learner
        self._manifest = Manifest(run.open_store(config), run.manifest_name())
        processed = config.multimodal.mode == "processed"
        self._materializer = materializer(run, config, family) if processed else None

    async def keep(self, label: str, trajectories: Sequence[Trajectory]) -> None:
        """Refer to images before anything is learnt from them: from now on they stay in the store.

        What is gone by now is for the trainer to miss, which knows the sample that shows it.
        """
        images = [image.image for one in trajectories for image in one.images]
        await to_thread.run_sync(partial(self._manifest.keep, label, images, missing_ok=True))

    async def learn(self, made: Sequence[TrainingSample], version: int, learning_rate: float) -> StepReport:
        """An optimizer step over these samples. `version` is the policy's before it."""
        planned = self._plan(made, version=version)
        work = await self._ready(TrainStep(learning_rate, version, planned.micro_batches))
        return self._told(await self._learner.step(work))

    async def learn_again(self, number: int) -> StepReport:
        """The same of a step whose samples are in the stream."""
        return self._told(await self._learner.take(number))

    async def measure(self, made: Sequence[TrainingSample]) -> Measured:
        """The loss over these samples, from which nothing is learnt."""
        batches: list[MicroBatch] = self._plan(made).micro_batches
        return await self._learner.measure(await self._ready(TrainStep(0.0, 0, batches)))

    def _plan(self, made: Sequence[TrainingSample], **about: int) -> Plan:
        planned = plan(made, self._family, self._config.trainer)
        if planned.cut or planned.dropped:
            self._run.event("samples_overlong", **about, cut=planned.cut, dropped=planned.dropped)
        return planned

    async def _ready(self, work: TrainStep) -> TrainStep:
        """The step with its images' arrays, in the mode in which samples bring them."""
        if self._materializer is None:
            return work
        may_miss, threads = self._config.multimodal.may_miss > 0, self._config.trainer.readers
        return await to_thread.run_sync(
            partial(with_images, work, self._materializer, may_miss=may_miss, threads=threads)
        )

    def _told(self, report: StepReport) -> StepReport:
        """The same report, and an event for each image that the step went on without."""
        for missing in report.missing:
            self._run.event("image_missing", **msgspec.structs.asdict(missing))
        return report
