"""A run on one machine that is told to end: soon, at a checkpoint, or at once; either way in order."""

import json
import signal
import subprocess

import psutil
import pytest

from tests.run.test_train import EXAMPLE, command, flags, pids, steps_done, wait_until


@pytest.mark.parametrize(
    ("sign", "status", "word"),
    [
        ("USR1", 75, "stopped at a checkpoint"),
        ("TERM", 1, "SIGTERM"),
        pytest.param("INT", 130, "interrupted", marks=pytest.mark.faults),
    ],
)
def test_it_ends_in_order_and_says_how_to_go_on(tiny_model, tmp_path, sign, status, word):
    directory = tmp_path / "run"
    chosen = ["--run.checkpoint_every", "1000000", "--model", str(tiny_model)]
    begun = command("train", str(EXAMPLE), *flags(directory, 1, 100_000, *chosen))
    run = subprocess.Popen(begun, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: steps_done(directory, "rl") >= 2)
    run.send_signal(getattr(signal, f"SIG{sign}"))
    text, _ = run.communicate(timeout=100)
    assert run.returncode == status, text
    assert word in text
    assert "Traceback" not in text
    assert f"`filmroll train --resume {directory}` goes on" in text
    assert not any(psutil.pid_exists(pid) for pid in pids(directory))
    assert (directory / "report.html").exists()
    events = [json.loads(line) for line in (directory / "events.jsonl").open()]
    assert events[-1]["kind"] == ("stopped" if sign == "USR1" else "failed")
    saved = [event["warmup"] + event["rl"] for event in events if event["kind"] == "checkpoint"]
    assert saved == ([steps_done(directory, "warmup") + steps_done(directory, "rl")] if sign == "USR1" else [])
