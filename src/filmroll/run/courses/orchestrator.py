"""The loop of a run: rollouts, samples, optimizer step, weights to the engine, checkpoint, again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from filmroll.errors import FilmrollError, RunError
from filmroll.families import load_family
from filmroll.render.tokenizer import TextTokenizer
from filmroll.rollout.worker import Played, RolloutTask
from filmroll.run.config import Config, RlConfig, WarmupConfig
from filmroll.run.courses.ahead import played_ahead
from filmroll.run.courses.course import Observer, check_end, course, ready_model
from filmroll.run.courses.exam import Sitting, examine
from filmroll.run.courses.groups import episode_seed, play
from filmroll.run.courses.lessons import DEMONSTRATED, Lessons
from filmroll.run.crew.crew import Crew, Restarts, crew
from filmroll.run.directory import RunDirectory
from filmroll.run.members.roles import model_dir
from filmroll.run.metrics import rl_row, warmup_row
from filmroll.run.processes.ending import Ending
from filmroll.run.record import rollout_record
from filmroll.train.batches.samples import branch_advantages, recent, samples
from filmroll.train.step import Progress
from filmroll.wire.training import LossWeights, TrainingSample


@dataclass(frozen=True, slots=True)
class Gathered:
    """The rollouts of a step, by group, and how long they took."""

    groups: list[list[Played]]
    failed: int
    seconds: float

    @property
    def rollouts(self) -> list[Played]:
        return [played for group in self.groups for played in group]


def train(
    config: Config,
    run: RunDirectory,
    observe: Observer,
    *,
    resume: bool = False,
    apart: bool = False,
    ending: Ending | None = None,
) -> bool:
    """Run the configured training in this process and those it starts, or with `apart` those that come by themselves.

    Returns whether it has reached its end: False where it was told to end soon.
    """
    ending = ending or Ending()
    with course(run, "train", resume=resume, apart=apart, ending=ending, chance=config.environment.chance):
        ready_model(run, config)
        ending.early = not ending.run(_work(config, run, observe, apart, ending))
    return not ending.early


async def _work(config: Config, run: RunDirectory, observe: Observer, apart: bool, ending: Ending) -> bool:
    async with crew(run, apart=apart) as hands:
        progress = await hands.learner.restore()
        run.event("restored", warmup=progress.warmup, rl=progress.rl)
        check_end(progress.rl, config.rl.steps, "rl.steps")
        orchestrator = Orchestrator(config, run, hands, observe, ending)
        return await orchestrator.go(await orchestrator.catch_up(progress))


class Orchestrator:
    """Drives a crew through warm-up and reinforcement learning.

    Which episodes a step plays follows from the configuration and the step's number alone, and all
    else from the trainer's state: a run that is resumed at a checkpoint goes on with the same
    episodes and the same policy. What is sampled in them is drawn anew.
    """

    def __init__(self, config: Config, run: RunDirectory, hands: Crew, observe: Observer, ending: Ending) -> None:
        self._config = config
        self._run = run
        self._hands = hands
        self._observe = observe
        self._ending = ending
        self._restarts = Restarts()
        self._family = load_family(model_dir(run, config))
        self._tokenizer = TextTokenizer.load(model_dir(run, config))
        self._seen = run.images(config)
        self._lessons = Lessons(config, run, self._family, hands.learner)
        self._sampling = config.sampling.params()

    async def catch_up(self, progress: Progress) -> Progress:
        """Train once more the steps after the checkpoint whose samples have outlived the run's processes.

        What they have led to is noted already. The last one's samples may be there without a note: it is played anew.
        """
        samples, noted = self._hands.learner.samples, max(self._run.steps_noted(), progress.steps)
        await samples.withdraw(noted)
        for number in range(progress.steps, samples.next):
            report = await self._lessons.learn_again(number)
            if progress.warmup < self._config.warmup.steps:
                progress = Progress(progress.warmup + 1)
            else:
                progress = progress.after(report)
            await self._save(progress)
            self._run.event("caught_up", warmup=progress.warmup, rl=progress.rl)
        return progress

    async def go(self, progress: Progress) -> bool:
        """Version n is the policy after n updates; the warm-up's result is version 0. False if it was told to end."""
        warmup, rl = self._config.warmup, self._config.rl
        async with aclosing(played_ahead(self._demonstrations, progress.warmup, warmup.steps, True)) as shown:
            async for step, played, started in shown:
                await self._warmup_step(step, played, started)
                progress = Progress(step + 1)
                await self._save(progress)
                if self._ending.soon:
                    return False
        await self._hands.publish(progress.version)
        if rl.evaluate_every and progress.rl == 0:
            await self._evaluate(progress.version)
        async with aclosing(played_ahead(self._gather, progress.rl, rl.steps, rl.ahead)) as gathered:
            async for _, rollouts, started in gathered:
                progress = await self._rl_step(progress, rollouts, started)
                await self._save(progress)
                if self._ending.soon and progress.rl < rl.steps:
                    return False
        return True

    async def _demonstrations(self, step: int) -> list[Played]:
        tasks = [self._task("warmup", step, number, 0) for number in range(self._config.warmup.batch_size)]
        return await asyncio.gather(*(self._hands.players.demonstrate(task) for task in tasks))

    async def _warmup_step(self, step: int, played: Sequence[Played], started: float) -> None:
        weights = LossWeights(cross_entropy=1.0)
        made = []
        for one in played:
            made += samples(one.trajectory, self._family, advantage=0.0, weights=weights)
        await self._keep("warmup", step, played)
        report = await self._lessons.learn(made, DEMONSTRATED, falling_rate(self._config.warmup, step))
        self._seen.update(image.image.sha256 for one in played for image in one.trajectory.images)
        self._note(warmup_row(step, made, report, self._hands.memory(), time.perf_counter() - started))

    async def _rl_step(self, progress: Progress, gathered: Gathered, started: float) -> Progress:
        step, version = progress.rl, progress.version
        await self._keep("rl", step, gathered.rollouts)
        made = self._samples(gathered)
        young = recent(made, version, most=self._config.rl.max_off_policy)
        if stale := len(made) - len(young):
            self._run.event("samples_stale", step=step, version=version, dropped=stale, left=len(young))
        ready, sent = time.perf_counter(), self._hands.learner.samples.sent_bytes
        report = await self._lessons.learn(young, version, falling_rate(self._config.rl, step))
        trained = time.perf_counter()
        progress = progress.after(report)
        if report.updated:
            await self._hands.publish(progress.version)
        else:
            self._run.event("step_skipped", step=step, version=version)
        published = time.perf_counter()
        held_out, evaluation = {}, {}
        if self._is_examined(step):
            held_out = await self._evaluate(progress.version)
            evaluation = {"evaluate": time.perf_counter() - published}
        done = time.perf_counter()
        row = rl_row(step, gathered.rollouts, gathered.failed, report, self._family, self._seen)
        row |= {
            "version": progress.version,
            "updated": report.updated,
            "samples_stale": stale,
            "sample_bytes": self._hands.learner.samples.sent_bytes - sent,
            "images_per_second": row["images"] / (published - started),
            **held_out,
            **self._restarts.since(self._hands),
            "memory": self._hands.memory(),
            "seconds": {
                "rollout": gathered.seconds,
                "train": trained - ready,
                "weights": published - trained,
                **evaluation,
                "total": done - started,
            },
        }
        if step % self._config.run.record_every == 0 or step == self._config.rl.steps - 1:
            records = [rollout_record(one.trajectory, step, self._tokenizer) for one in gathered.rollouts]
            self._run.record(step, records)
        # Last: over files, a resumed run does not play again what is noted.
        self._note(row)
        return progress

    async def _gather(self, step: int) -> Gathered:
        """Play a step's groups. A group with a broken rollout is left out; too many of them end the run."""
        started = time.perf_counter()
        config = self._config.rl
        groups = await play(
            self._hands.players,
            [
                [self._task("rl", step, prompt, number) for number in range(config.rollouts_per_prompt)]
                for prompt in range(config.prompts)
            ],
        )
        broken = groups.broken
        whole = [group for group in groups.played if len(group) == config.rollouts_per_prompt]
        if 2 * len(whole) < config.prompts:
            raise RunError(f"{len(broken)} rollouts of step {step} failed, the first with: {broken[0]}") from broken[0]
        self._note_broken(broken, step=step)
        return Gathered(whole, len(broken), time.perf_counter() - started)

    def _is_examined(self, step: int) -> bool:
        every = self._config.rl.evaluate_every
        return every > 0 and ((step + 1) % every == 0 or step + 1 == self._config.rl.steps)

    async def _evaluate(self, version: int) -> dict[str, Any]:
        """Have the policy play the held-out episodes while no update comes between, and say how it stands."""

        def note(sitting: Sitting) -> None:
            self._note_broken(sitting.groups.broken, evaluated=version)

        found = await examine(self._config, self._hands.players, version, note)
        self._run.event("evaluated", **found.row())
        return {"held_out_reward": found.reward, "held_out_error": found.reward_error}

    def _samples(self, gathered: Gathered) -> list[TrainingSample]:
        made = []
        for group in gathered.groups:
            played = [one.trajectory for one in group]
            advantages = branch_advantages(played, normalize=self._config.loss.normalize)
            for trajectory, (advantage, scored) in zip(played, advantages, strict=True):
                weights = LossWeights(rl=1.0, kl=self._config.loss.kl)
                made += samples(trajectory, self._family, advantage=advantage, weights=weights, scored=scored)
        return made

    async def _keep(self, phase: str, step: int, played: Sequence[Played]) -> None:
        await self._lessons.keep(f"{phase}_{step:06d}", [one.trajectory for one in played])

    async def _save(self, progress: Progress) -> None:
        done, total = progress.warmup + progress.rl, self._config.warmup.steps + self._config.rl.steps
        due = done % self._config.run.checkpoint_every == 0 or done == total
        # What is saved need not be kept in the stream any longer.
        if due or self._ending.soon or self._hands.learner.samples.crowded:
            await self._hands.learner.save(progress)
            self._run.event("checkpoint", warmup=progress.warmup, rl=progress.rl)

    def _task(self, phase: str, step: int, prompt: int, number: int) -> RolloutTask:
        """Rollouts of a group share the episode's seed, and with it all that they are shown."""
        seed = episode_seed(self._config.seed, phase, step, prompt)
        name = f"{phase}_{step}/prompt_{prompt}/rollout_{number}"
        return RolloutTask(name, seed, self._sampling, self._config.rl.max_turns)

    def _note_broken(self, broken: Sequence[FilmrollError], **where: int) -> None:
        for error in broken:
            self._run.event("rollout_failed", **where, error=str(error))

    def _note(self, row: dict[str, Any]) -> None:
        self._run.metrics(row)
        self._observe(row)


def falling_rate(phase: WarmupConfig | RlConfig, step: int) -> float:
    """The learning rate of a phase's step: from the first's to the last's in a straight line."""
    return phase.learning_rate + (phase.final_learning_rate - phase.learning_rate) * step / max(1, phase.steps - 1)
