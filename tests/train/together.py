"""A trainer of any number of ranks that does what a list says: a program under torchrun, or here alone.

    python -m tests.train.together PLANS.json [NODE]

Each plan has a trainer and a folder of its own; the ranks go through them one after the other, because their start
takes longer than most plans. NODE is this machine's number where the ranks are on two of them. Every answer is a line
in a file in the plan's folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from filmroll.errors import FilmrollError
from filmroll.families import load_family
from filmroll.families.base import Family
from filmroll.materialize import Materializer
from filmroll.store import Store, open_store
from filmroll.train.batches.bins import Costs
from filmroll.train.batches.plan import deal, plan
from filmroll.train.learning.objective import LossConfig
from filmroll.train.learning.ranks import Ranks
from filmroll.train.learning.reference import Reference
from filmroll.train.learning.trainer import Trainer
from filmroll.train.process.team import Team
from filmroll.train.step import Progress, TrainerConfig, TrainStep
from filmroll.wire.training import LossWeights, PlacedImage, TrainingSample

CONFIG = TrainerConfig(threads=1, max_tokens=70)
SIZES = ((32, 32), (64, 96), (96, 32), (64, 64))
RATE = 5e-4


def work(store: Store, family: Family, number: int, *, pictures: int = 4, count: int = 7, kl: float = 0.0) -> TrainStep:
    """The step of that number: samples with and without images, more of them than fit into one micro-batch."""
    noise = np.random.default_rng(number)
    album = [
        family.describe(store.put(noise.integers(0, 256, (*size, 3), np.uint8))) for size in SIZES[: max(1, pictures)]
    ]
    samples = []
    for index in range(count):
        ids, images = list(noise.integers(0, 200, 5 + index)), []
        for shown in range(min(index % 3, pictures)):
            images.append(PlacedImage(album[(index + shown) % len(album)], len(ids)))
            ids += [*family.expansion(images[-1].descriptor), *noise.integers(0, 200, 4)]
        token_ids = np.array(ids, np.int32)
        samples.append(
            TrainingSample(
                name=f"step_{number}/sample_{index}",
                token_ids=token_ids,
                trained=((token_ids != family.placeholders.image) & (noise.random(len(ids)) < 0.5)).astype(np.uint8),
                logprobs=noise.normal(-6, 0.3, len(ids)).astype(np.float32),
                temperatures=np.full(len(ids), 0.8, np.float32),
                versions=np.full(len(ids), number, np.int32),
                advantage=1.0 - index % 3,
                weights=LossWeights(rl=1.0, cross_entropy=0.25 * (index % 2), kl=kl),
                images=images,
            )
        )
    return TrainStep(RATE, number, plan(samples, family, CONFIG).micro_batches)


def step_without(store: Store, family: Family, number: int, *of: int) -> TrainStep:
    """A step of which an image is gone that rank 1 alone is given, or one of each of these ranks."""
    made = work(store, family, number)
    shown = [
        {image.descriptor.image.uri for batch in part for image in batch.images}
        for part in deal(made.micro_batches, Costs(family), 2)
    ]
    for rank in of or (1,):
        Path(min(shown[rank] - shown[1 - rank]).removeprefix("file://")).unlink()
    return made


def team_of(told: dict[str, Any], ranks: Ranks) -> Team:
    place, model, store = Path(told["place"]), Path(told["model"]), open_store(told["store"])
    objective = LossConfig(**told.get("objective", {}))
    reference = Reference(model) if objective.kl else None
    config = CONFIG.model_copy(update=told.get("dress", {}))
    images, may_miss = Materializer(store, load_family(model)), told.get("may_miss", 0.0)
    trainer = Trainer(model, images, config, objective, ranks, may_miss=may_miss, reference=reference)
    return Team(trainer, weights=place / "weights", checkpoints=place / "checkpoints", keep=2, shard_bytes=1 << 20)


def answers(told: dict[str, Any], team: Team) -> Iterator[Any]:
    """What rank 0 hears, one after the other; an error of filmroll's is an answer, too."""
    store, family = open_store(told["store"]), load_family(Path(told["model"]))
    kl = told.get("objective", {}).get("kl", 0.0)
    actions: dict[str, Callable[[int], Any]] = {
        "step": lambda number: team.step(work(store, family, number, kl=kl)),
        "nothing": lambda number: team.step(TrainStep(RATE, number, [])),
        "plain": lambda number: team.step(work(store, family, number, pictures=0)),
        "single": lambda number: team.step(work(store, family, number, count=2)),
        "lost": lambda number: team.step(step_without(store, family, number)),
        "lost on both": lambda number: team.step(step_without(store, family, number, 0, 1)),
        "measure": lambda number: team.measure(work(store, family, number)),
        "save": lambda number: team.save(Progress(1, number)),
        "restore": lambda _: team.restore(),
        "publish": team.publish,
    }
    for name, number in told["do"]:
        try:
            yield msgspec.to_builtins(actions[name](number))
        except FilmrollError as error:
            yield {"error": type(error).__name__, "text": str(error), "out_of_step": team.ranks.out_of_step}


class NextPlan(BaseException):
    """Rank 0 has gone on to it."""


class Planned(Ranks):
    """Ranks of which rank 0 may also say that it goes on to the next plan."""

    def order(self, said: bytes = b"") -> bytes:
        heard = super().order(said)
        if heard == NEXT and not self.leads:
            raise NextPlan
        return heard


NEXT = b"the next plan"


def main(plans: list[dict[str, Any]]) -> None:
    ranks = Planned.join(plans[0].get("dress", {}).get("device", "cpu"))
    for told in plans:
        carry_out(told, ranks, last=told is plans[-1])
    # Until whoever started this has seen it, and ends it.
    time.sleep(600)


def carry_out(told: dict[str, Any], ranks: Ranks, *, last: bool) -> None:
    place, team = Path(told["place"]), team_of(told, ranks)
    (place / f"pid_{ranks.rank}").write_text(str(os.getpid()))
    if told["fault"] and ranks.rank == 1:
        layer = team._trainer.model.model.language_model.layers[1]
        layer.register_forward_pre_hook(lambda *_: FAULTS[told["fault"]](place))
    if not ranks.leads:
        with suppress(NextPlan):
            team.follow()
        return
    for answer in answers(told, team):
        with (place / "answers").open("a") as file:
            file.write(json.dumps(answer) + "\n")
    if not last:
        ranks.order(NEXT)
    (place / "finished").touch()


def _fail(_place: Path) -> None:
    raise ValueError("this layer cannot go on")


def _wait(place: Path) -> None:
    (place / "waiting").touch()
    time.sleep(600)


FAULTS = {"fails": _fail, "waits": _wait}
"""What rank 1 does in the middle of a forward, where rank 0 waits for it."""

if __name__ == "__main__":
    from filmroll.run.processes.torchrun import Meeting, is_rank, saying_what_failed, start_ranks

    plans = json.loads(Path(sys.argv[1]).read_text())
    meeting = Meeting(**plans[0]["meeting"], node=int(sys.argv[2]), nodes=2, sign=7) if sys.argv[2:] else None
    if is_rank():
        saying_what_failed(lambda: main(plans))
    else:
        start_ranks(2, ["-m", "tests.train.together", sys.argv[1]], meeting)
