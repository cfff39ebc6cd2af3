"""Supervised training: conversations that somebody has written become samples, and a run's trainer learns from them.

Rendering, packing, loader, trainer and checkpoints are those of reinforcement learning; no engine is started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from anyio import to_thread

from filmroll.dataset.examples import Examples
from filmroll.errors import DatasetError, DiskFullError, FilmrollError
from filmroll.render import Renderer, RendererPool, load_renderer
from filmroll.render.tokenizer import TextTokenizer
from filmroll.rollout.trajectory import Trajectory
from filmroll.run.config import Config
from filmroll.run.courses.ahead import played_ahead
from filmroll.run.courses.course import Observer, check_end, course, ready_model
from filmroll.run.courses.lessons import DEMONSTRATED, Lessons
from filmroll.run.courses.syllabus import Syllabus
from filmroll.run.crew.crew import learner_alone, memory
from filmroll.run.crew.learner import Learner
from filmroll.run.directory import RunDirectory
from filmroll.run.export import export
from filmroll.run.members.roles import model_dir
from filmroll.run.metrics import sft_row
from filmroll.run.processes.ending import Ending
from filmroll.run.record import rollout_record
from filmroll.train.batches.samples import samples
from filmroll.train.step import Progress
from filmroll.wire.training import LossWeights, TrainingSample

RECORDED = 8
"""Conversations of a step that are written down for people."""


def sft(
    config: Config,
    run: RunDirectory,
    observe: Observer,
    *,
    resume: bool = False,
    apart: bool = False,
    ending: Ending | None = None,
) -> bool:
    """Learn the configured conversations, in this process and the trainer's; with `apart` that one comes by itself.

    Returns whether it has reached its end: False where it was told to end soon.
    """
    ending = ending or Ending()
    with course(run, "sft", resume=resume, apart=apart, ending=ending):
        ready_model(run, config)
        renderer = load_renderer(
            model_dir(run, config), run.open_store(config), typed=config.render.typed, options=config.render.options
        )
        syllabus = Syllabus.of(config, run, renderer)
        ending.early = not ending.run(_sft(config, run, renderer, syllabus, observe, apart, ending))
    return not ending.early


async def _sft(
    config: Config,
    run: RunDirectory,
    renderer: Renderer,
    syllabus: Syllabus,
    observe: Observer,
    apart: bool,
    ending: Ending,
) -> bool:
    async with learner_alone(run, apart=apart) as learner:
        progress = await learner.restore()
        # Samples follow from the rows, so none has to outlive a trainer.
        await learner.samples.withdraw(progress.steps)
        run.event("restored", sft=progress.steps)
        check_end(progress.steps, syllabus.steps, "sft.steps" if config.sft.steps else "sft.epochs")
        return await Study(config, run, renderer, learner, syllabus, observe, ending).go(progress.steps)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rows of a step that could be rendered, how many could not, and how long it took."""

    trajectories: list[Trajectory]
    skipped: int
    seconds: float


class Study:
    """Takes a learner through a syllabus.

    Which rows a step learns from follows from the seed and the step's number, so a run that is
    resumed at a checkpoint goes on with the very rows that it would have come to.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        renderer: Renderer,
        learner: Learner,
        syllabus: Syllabus,
        observe: Observer,
        ending: Ending,
    ) -> None:
        self._config = config
        self._run = run
        self._family = renderer.family
        self._learner = learner
        self._syllabus = syllabus
        self._observe = observe
        self._ending = ending
        self._lessons = Lessons(config, run, self._family, learner)
        self._tokenizer = TextTokenizer.load(model_dir(run, config))
        self._seen = run.images(config)
        self._renderers = RendererPool(renderer)
        last_alone = config.data.answers == "last"
        self._learnt = Examples(*syllabus.learnt.source, renderer, last_alone=last_alone)
        self._held = Examples(*syllabus.held.source, renderer, last_alone=last_alone) if syllabus.held else None
        self._held_samples: list[TrainingSample] | None = None

    async def go(self, first: int) -> bool:
        """From this step to the last; then the weights are written, and a folder that transformers loads.

        False if it was told to end before.
        """
        steps = self._syllabus.steps
        async with aclosing(played_ahead(self._render, first, steps, True)) as rendered:
            async for step, batch, started in rendered:
                await self._step(step, batch, started)
                await self._save(step + 1)
                if self._ending.soon and step + 1 < steps:
                    return False
        await self._learner.publish(steps)
        exported = await to_thread.run_sync(export, self._run, steps)
        self._run.event("exported", folder=str(exported), version=steps)
        return True

    async def _render(self, step: int) -> Rendered:
        started = time.perf_counter()
        rows = self._syllabus.order.batch(step)
        trajectories, skipped = await self._rendered(self._learnt, rows, step=step)
        if not trajectories:
            raise DatasetError(
                f"none of the {len(rows)} rows of step {step} can be learnt from",
                remedy="The run's events say why; larger steps get over bad rows",
            )
        return Rendered(trajectories, skipped, time.perf_counter() - started)

    async def _rendered(self, examples: Examples, rows: Sequence[int], **about: Any) -> tuple[list[Trajectory], int]:
        """The rows as trajectories, and how many were left out, where that is what bad rows are."""
        made = await asyncio.gather(
            *(self._renderers.run(examples.__getitem__, row) for row in rows), return_exceptions=True
        )
        broken = [one for one in made if isinstance(one, BaseException)]
        for error in broken:
            refused = not isinstance(error, FilmrollError) or self._config.data.bad == "refuse"
            if refused or isinstance(error, DiskFullError):
                raise error
            self._run.event("row_skipped", **about, error=str(error))
        return [one for one in made if isinstance(one, Trajectory)], len(broken)

    async def _step(self, step: int, batch: Rendered, started: float) -> None:
        order, settings = self._syllabus.order, self._config.sft
        if order.epoch(step) == 0:
            # Later epochs show the same images.
            await self._lessons.keep(f"sft_{step:06d}", batch.trajectories)
        made, rate = self._samples(batch.trajectories), settings.rate(step, self._syllabus.steps)
        sent = self._learner.samples.sent_bytes
        report = await self._lessons.learn(made, DEMONSTRATED, rate)
        done = time.perf_counter()
        row = sft_row(step, made, report, self._family, self._seen, done - started)
        row |= {
            "steps": self._syllabus.steps,
            "epoch": (step + 1) / order.steps_per_epoch,
            "learning_rate": rate,
            "rows": len(batch.trajectories),
            "rows_skipped": batch.skipped,
            "sample_bytes": self._learner.samples.sent_bytes - sent,
            "memory": memory({}, self._learner.process),
            "seconds": {"render": batch.seconds, "train": report.seconds, "total": done - started},
        }
        last = step + 1 == self._syllabus.steps
        if self._held is not None and (last or (step + 1) % settings.measure_every == 0):
            row["held_out_loss"] = await self._measured(self._held)
        if last or step % self._config.run.record_every == 0:
            shown = batch.trajectories[:RECORDED]
            self._run.record(step, [rollout_record(one, step, self._tokenizer) for one in shown])
        # Last, as in every course: a step that is noted is recorded.
        self._run.metrics(row)
        self._observe(row)

    async def _measured(self, held: Examples) -> float:
        """The mean loss over the tokens of all held-out rows, some rows at a time."""
        if self._held_samples is None:
            trajectories, _ = await self._rendered(held, self._syllabus.held_rows)
            await self._lessons.keep("held_out", trajectories)
            self._held_samples = self._samples(trajectories)
        total, tokens, size = 0.0, 0, self._config.sft.batch_size
        for begin in range(0, len(self._held_samples), size):
            measured = await self._lessons.measure(self._held_samples[begin : begin + size])
            total += measured.loss * measured.tokens
            tokens += measured.tokens
        return total / tokens

    def _samples(self, trajectories: Sequence[Trajectory]) -> list[TrainingSample]:
        weights = LossWeights(cross_entropy=1.0)
        made = [samples(one, self._family, advantage=0.0, weights=weights) for one in trajectories]
        return [sample for several in made for sample in several]

    async def _save(self, done: int) -> None:
        due = done % self._config.run.checkpoint_every == 0 or done == self._syllabus.steps
        if due or self._ending.soon or self._learner.samples.crowded:
            await self._learner.save(Progress(done, 0))
            self._run.event("checkpoint", sft=done)
