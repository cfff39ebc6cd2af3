"""A run on one machine that is told to end: soon, at a checkpoint, or now; either way in order. And twice: at once."""

import json
import os
import signal
import subprocess

import psutil
import pytest

from filmroll.errors import RunError
from filmroll.run.processes.ending import Ending, ToldToEnd
from tests.run import test_sft
from tests.run.test_train import EXAMPLE, command, flags, pids, steps_done, wait_until


def start(*arguments):
    """Its output, all of it, is what a terminal would show."""
    return subprocess.Popen(command(*map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def events(directory):
    return [json.loads(line) for line in (directory / "events.jsonl").open()]


@pytest.mark.parametrize(
    ("sign", "status", "word"),
    [
        ("USR1", 75, "stopped at a checkpoint"),
        ("TERM", 143, "ended by SIGTERM"),
        pytest.param("INT", 130, "interrupted", marks=pytest.mark.faults),
    ],
)
def test_it_ends_in_order_and_says_how_to_go_on(tiny_model, tmp_path, sign, status, word):
    directory = tmp_path / "run"
    chosen = ["--run.checkpoint_every", "1000000", "--model", str(tiny_model)]
    run = start("train", EXAMPLE, *flags(directory, 1, 100_000, *chosen))
    wait_until(lambda: steps_done(directory, "rl") >= 2)
    run.send_signal(getattr(signal, f"SIG{sign}"))
    text, _ = run.communicate(timeout=100)
    assert run.returncode == status, text
    assert text.splitlines()[-1].startswith(f"{word}; `filmroll train --resume {directory}` goes on")
    assert "Traceback" not in text
    assert not any(psutil.pid_exists(pid) for pid in pids(directory))
    assert (directory / "report.html").exists()
    (*_, last) = events(directory)
    assert last["kind"] == "stopped"
    assert ("reason" in last) == (sign != "USR1")
    saved = [event["warmup"] + event["rl"] for event in events(directory) if event["kind"] == "checkpoint"]
    assert saved == ([steps_done(directory, "warmup") + steps_done(directory, "rl")] if sign == "USR1" else [])


def started(name, directory, model, folder):
    """A run of this command, and the name of a process that it starts early."""
    small = ["--environment.size", "32", "--run.directory", directory]
    if name == "train":
        return start("train", EXAMPLE, *flags(directory, 1, 1, "--model", model)), "engine"
    if name == "eval":
        return start("eval", model, "color_codeword", *small), "engine"
    return start("sft", *test_sft.flags(directory, test_sft.make(folder, 8), model)), "trainer"


@pytest.mark.parametrize(
    ("name", "sign", "said"),
    [
        ("train", signal.SIGTERM, "ended by SIGTERM; `filmroll train --resume {}` goes on from the last checkpoint"),
        ("sft", signal.SIGINT, "interrupted; `filmroll sft --resume {}` goes on from the last checkpoint"),
        ("eval", signal.SIGTERM, "ended by SIGTERM; start it again"),
    ],
)
def test_while_it_starts_it_ends_with_one_sentence_and_nothing_else(tiny_model, tmp_path, name, sign, said):
    """Its processes are there by then, and none of them can be spoken to yet."""
    directory = tmp_path / "run"
    run, early = started(name, directory, tiny_model, tmp_path)
    wait_until(lambda: (directory / "logs" / f"{early}.log").exists())
    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(sign)
    text, _ = run.communicate(timeout=100)
    assert run.returncode == 128 + sign, text
    first, *rest = text.splitlines()
    assert first == f"run {directory}"
    assert rest == [said.format(directory)]
    assert not any(one.is_running() for one in family)
    assert (events(directory)[-1]["kind"], events(directory)[-1]["reason"]) == ("stopped", rest[0])


def test_a_second_signal_waits_for_nobody(tiny_model, tmp_path):
    """An engine that is stopped hears no SIGTERM: the first signal waits for it, the second does not."""
    directory = tmp_path / "run"
    run = start("train", EXAMPLE, *flags(directory, 1, 100_000, "--model", str(tiny_model)))
    wait_until(lambda: steps_done(directory, "warmup") >= 1)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) == len(pids(directory)) == 3
    os.kill(json.loads((directory / "processes" / "engine.json").read_text())["pid"], signal.SIGSTOP)
    run.send_signal(signal.SIGINT)
    wait_until(lambda: sum(one.is_running() for one in family) == 1)
    run.send_signal(signal.SIGINT)
    text, _ = run.communicate(timeout=100)
    assert run.returncode == 130
    wait_until(lambda: not any(one.is_running() for one in family))
    assert text.splitlines()[-1].startswith(f"interrupted; `filmroll train --resume {directory}` goes on")
    assert text.count("interrupted") == 1
    assert "Traceback" not in text
    assert not (directory / "report.html").exists()
    assert [event["kind"] for event in events(directory)].count("stopped") == 1


def test_told_between_two_works_it_ends_there_and_an_error_is_not_taken_for_it():
    ending = Ending("go on")
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

    async def fails():
        raise RunError("it is lost")

    try:
        ending.listen()
        with pytest.raises(RunError, match="it is lost"):
            ending.run(fails())
        with pytest.raises(ToldToEnd, match="ended by SIGTERM; go on") as told:
            os.kill(os.getpid(), signal.SIGTERM)
        assert told.value.status == 143
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
