"""A whole run in mode processed: the trainer learns the same from what it is sent, and needs no store."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from filmroll.materialize import Materializer
from filmroll.run.config import Config, load_config
from filmroll.run.directory import RunDirectory
from filmroll.train.loading.processed import with_images
from filmroll.train.step import Ask, Restored, StepReport, Take, TrainStep
from filmroll.wire.channel import Caller
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import MicroBatch
from filmroll.wire.transport import Codec, Window, open_sender
from tests.run.test_train import EXAMPLE, rows, train, wait_until
from tests.train.every_case import SHOWN, Ground

TRAINER = """
import sys
from pathlib import Path
from filmroll.run.directory import RunDirectory
from filmroll.run.members.roles import run_trainer
run_trainer(RunDirectory.open(Path(sys.argv[1])), "trainer")
"""


def test_a_processed_run_learns_what_a_raw_one_does(tiny_model: Path, tmp_path: Path) -> None:
    """Warm-up samples nothing, so it is the same in both."""
    for mode, rl in (("raw", 0), ("processed", 1)):
        over = ["--multimodal.mode", mode, "--transport.kind", "files", "--model", str(tiny_model)]
        done = train(tmp_path / mode, 2, rl, *over)
        assert done.returncode == 0, done.stdout + done.stderr
    raw, processed = rows(tmp_path / "raw", "warmup"), rows(tmp_path / "processed", "warmup")
    for name in ("loss", "grad_norm", "entropy"):
        assert [row[name] for row in processed] == pytest.approx([row[name] for row in raw], rel=1e-6), name
    for row in rows(tmp_path / "processed"):
        assert len(set(row["trainer_receipt"].values())) == 1
        assert row["trainer_receipt"]["consumed"] > 0
    for row in rows(tmp_path / "processed", "rl"):
        # The engine still gets references.
        assert set(row["engine_receipt"].values()) == {row["images"]}
        assert row["request_bytes"] < row["images"] * 1500
        # A 32x32 picture is 3 KB of levels, and travels once, however often its group shows it.
        levels = 3072 * row["images_unique"]
        assert levels < row["sample_bytes"] < levels + 2000 * row["turns"]
    assert any(row["logprob_gap_max"] is not None for row in rows(tmp_path / "processed", "rl"))
    assert all((row["logprob_gap_max"] or 0) < 1e-4 for row in rows(tmp_path / "processed", "rl"))
    for record in (tmp_path / "processed" / "rollouts").glob("*.jsonl"):
        assert "pixel_values" not in record.read_text()


@pytest.mark.parametrize("case", ["llava_onevision", "tiny"])
def test_its_trainer_opens_no_store(case: str, tmp_path: Path) -> None:
    """The trainer's process, in a run whose store nobody can reach."""
    ground = Ground.of(case, tmp_path)
    chosen = ["--model", str(ground.folder), "--run.directory", str(tmp_path / "run"), "--transport.kind", "files"]
    nowhere = ["--multimodal.mode", "processed", "--multimodal.store", "s3://nowhere/images"]
    run = RunDirectory.create(load_config(EXAMPLE, [*chosen, *nowhere]))
    images = Materializer(ground.store, ground.family)
    work = with_images(TrainStep(1e-3, 0, [MicroBatch(ground.rows)]), images)
    command = [sys.executable, "-c", TRAINER, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as trainer:
        try:
            announced = run.processes / "trainer.json"
            wait_until(lambda: announced.exists() or trainer.poll() is not None)
            assert trainer.poll() is None, trainer.communicate()[1]
            endpoint = json.loads(announced.read_text())["endpoint"]
            report = asyncio.run(trained(endpoint, work))
        finally:
            trainer.kill()
    assert report.receipt == Receipt(*[sum(map(len, SHOWN))] * 4)


async def trained(endpoint: str, work: TrainStep) -> StepReport:
    caller = Caller(endpoint)
    try:
        place = (await caller.call("restore", Ask(), Restored)).samples
        sender = await open_sender(place, Codec(TrainStep, tensors=True), Window())
        number = await sender.send(work)
        await sender.close()
        return await caller.call("step", Take(number), StepReport)
    finally:
        caller.close()


def test_the_mode_is_chosen_like_the_others() -> None:
    assert load_config(EXAMPLE, ["--multimodal.mode", "processed"]).multimodal.mode == "processed"
    assert Config().multimodal.mode == "raw"
