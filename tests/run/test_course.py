"""How a run ends: its events say it, and the error tells what goes on with it, as it was begun."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from filmroll.errors import ConfigError, DiskFullError, PeerError, RunError
from filmroll.run.config import Config
from filmroll.run.courses.course import course, resumed
from filmroll.run.directory import RunDirectory
from filmroll.run.engine_config import EmbeddedEngineConfig, VllmEngineConfig
from filmroll.run.movable import MOVABLE
from tests.command_line import filmroll_here

ON = "goes on from the last checkpoint"
FULL = OSError(28, "No space left on device")


def made(place: Path, **sections: object) -> RunDirectory:
    run = RunDirectory.create(Config.model_validate({"run": {"directory": str(place / "run")}, **sections}))
    return RunDirectory.open(run.path)


def events(run: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in run.events_file.read_text().splitlines()]


def ends_with(run: RunDirectory, name: str, error: Exception, *, apart: bool = False) -> Exception:
    """What the error of a run's body is to whoever started it; its event says the same."""
    with pytest.raises(Exception, match=r".") as caught, course(run, name, apart=apart):
        raise error
    assert events(run)[-1]["error"] == str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "apart", "way"),
    [
        ("train", False, "train --resume"),
        ("sft", False, "sft --resume"),
        ("train", True, "orchestrator --run"),
        ("sft", True, "orchestrator --run"),
    ],
)
def test_what_ends_a_run_says_what_goes_on_with_it(tmp_path: Path, name: str, apart: bool, way: str) -> None:
    run = made(tmp_path)
    on = f"`filmroll {way} {run.path}` {ON}"
    for error in (RunError("process trainer is lost"), PeerError("KeyError: 'a'")):
        assert str(ends_with(run, name, error, apart=apart)) == f"{error.problem}. {on}"
    for error in (FULL, DiskFullError("there is no room", remedy="Make room there")):
        full = ends_with(run, name, error, apart=apart)
        assert isinstance(full, DiskFullError)
        assert str(full).endswith(f"Make room there; {on}")


def test_an_evaluation_is_started_again(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert str(ends_with(run, "eval", FULL)).endswith("Make room there and start it again")
    assert str(ends_with(run, "eval", RunError("process worker is lost"))) == "process worker is lost"
    with pytest.raises(ConfigError, match=r"the run of `filmroll eval`\. It cannot be gone on with: start another"):
        resumed(run.path, "train")


def test_an_error_that_says_what_to_do_is_left_alone(tmp_path: Path) -> None:
    run = made(tmp_path)
    for error in (RunError("it has not come", remedy="Start it"), ConfigError("two of them"), KeyError("a")):
        assert ends_with(run, "train", error) is error


def test_a_run_that_has_not_begun_is_that_of_the_command_whose_configuration_it_has(tmp_path: Path) -> None:
    """Such as one that was ended before its first word, or that `filmroll slurm` has submitted."""
    learns = made(tmp_path / "sft", data={"path": "chats.jsonl"})
    plays = made(tmp_path / "train")
    assert (learns.command, plays.command) == ("sft", "train")
    with course(plays, "eval"):
        pass
    with course(learns, "train"):
        pass
    assert (learns.command, plays.command) == ("train", "eval")


def test_a_flag_may_stand_where_the_file_could_and_is_read_as_it_is(tmp_path: Path) -> None:
    run = made(tmp_path)

    def said(*words: str) -> str:
        done = filmroll_here(*words)
        assert done.returncode == 2, done.stdout
        return done.stderr

    for words in (["--run.control=runs//one/"], ["--run.control", "runs//one/"]):
        assert "run.control is '' there and 'runs//one/' here" in said("train", "--resume", str(run.path), *words)
    assert "--rl.steps stands where the TOML file should. Name the file first\n" in said("train", "--rl.steps", "3")


def test_every_movable_name_is_a_field() -> None:
    """Another one would let nothing change, and nobody would hear of it."""
    for name in MOVABLE:
        section, _, field = name.partition(".")
        kinds = [EmbeddedEngineConfig, VllmEngineConfig] if section == "engine" else [type(getattr(Config(), section))]
        assert any(not field or field in kind.model_fields for kind in kinds), name


def test_what_a_run_goes_on_with_otherwise_is_written_down(tmp_path: Path) -> None:
    """Longer, in smaller pieces; and what would be another run is refused, and changes nothing."""
    run = made(tmp_path)
    with course(run, "train"):
        pass
    before = run.config()
    flags = ["--rl.steps", "300", "--trainer.max_tokens", "512", "--slurm.nodes", "3"]
    with pytest.raises(ConfigError, match=r"rl\.learning_rate is 0\.0005 there and 0\.1 here"):
        resumed(run.path, "train", flags=[*flags, "--rl.learning_rate", "0.1"])
    assert run.config() == before
    now = resumed(run.path, "train", flags=flags).config()
    assert (now.rl.steps, now.trainer.max_tokens, now.slurm.nodes) == (300, 512, 3)
    (told,) = [one for one in events(run) if one.pop("kind") == "reconfigured"]
    told.pop("time")
    assert told == {"rl.steps": [100, 300], "trainer.max_tokens": [4096, 512], "slurm.nodes": [1, 3]}
    resumed(run.path, "train", flags=flags)
    assert run.events_file.read_text().count("reconfigured") == 1


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    """Which changes nothing: it still goes on as it was."""
    for phase in ("rl", "sft"):
        run = made(tmp_path / phase)
        with course(run, "train"):
            pass
        for step in range(7):
            run.metrics({"phase": phase, "step": step})
        before = run.config_file.read_bytes()
        with pytest.raises(ConfigError, match=rf"has taken 7 steps, and {phase}\.steps has it end after 6"):
            resumed(run.path, "train", flags=[f"--{phase}.steps", "6"])
        assert run.config_file.read_bytes() == before
        assert "failed" not in run.events_file.read_text()
        assert getattr(resumed(run.path, "train", flags=[f"--{phase}.steps", "7"]).config(), phase).steps == 7


def test_a_run_that_somebody_leads_is_left_alone(tmp_path: Path) -> None:
    """Whoever came second would take away what the first is about to write."""
    run = made(tmp_path)
    with course(run, "train"):
        pass
    draft = run.weights / ".step_1-half"
    draft.mkdir()
    code = f"""
from pathlib import Path
from filmroll.run.courses.course import resumed
run = resumed(Path({str(run.path)!r}), "train")
print("leads", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "leads\n"
        draft.mkdir()
        for words in (("train", "--resume", run.path), ("orchestrator", "--run", run.path)):
            done = filmroll_here(*words)
            assert done.returncode == 2
            assert f"process {first.pid} of {socket.gethostname()} is at work in {run.path}" in done.stderr
        assert draft.exists()
        # However it ends, nobody has to clear anything away.
        first.kill()
    assert resumed(run.path, "train").path == run.path
    assert not draft.exists()


def test_orchestrators_take_over_from_each_other(tmp_path: Path) -> None:
    run = made(tmp_path)
    first = resumed(run.path, "train", apart=True)
    second = resumed(run.path, "train", apart=True)
    assert first.path == second.path
    with pytest.raises(ConfigError, match="is at work in"):
        resumed(run.path, "train")
