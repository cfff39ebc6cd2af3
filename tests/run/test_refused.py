"""What is refused before anything is started leaves nothing, and what has come to nothing is in nobody's way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from filmroll.durable import append_line
from filmroll.errors import ConfigError, FilmrollError, RunError
from filmroll.run.cluster.join import there_will_be
from filmroll.run.config import Config, load_config
from filmroll.run.courses.course import course
from filmroll.run.directory import RunDirectory
from tests.command_line import filmroll_here
from tests.disks import small_disk

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAIN, LEARN = EXAMPLES / "color_codeword.toml", EXAMPLES / "color_names.toml"
NO_IMAGE = {"role": "user", "content": [{"type": "image"}]}
ROWS = [
    [{"role": "user", "content": "hi"}],
    [NO_IMAGE, {"role": "assistant", "content": "a"}],
    [{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}, {"role": "assistant", "content": "a"}],
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", TRAIN, "--model", "{gone}"], "the model is not a folder"),
        (["train", TRAIN, "--model", "{empty}"], "has no config.json"),
        (["train", TRAIN, "--model", "{strange}"], "UnknownFamilyError"),
        (["train", TRAIN, "--model", "{mute}"], "tokenizer.json is missing"),
        (["eval", "{mute}", "color_codeword"], "tokenizer.json is missing"),
        (["train", TRAIN, "--model", "{model}", "--render.options.nope", "1"], "nope"),
        (["train", TRAIN, "--model", "{model}", "--run.env_vars.VF_RENDERER_IMAGE_OFFLOAD_DIR", "/x"], "OFFLOAD_DIR"),
        (["orchestrator", TRAIN, "--model", "{gone}"], "the model is not a folder"),
        (["eval", "{gone}", "color_codeword"], "the model is not a folder"),
        (["sft", LEARN, "--model", "{gone}"], "the model is not a folder"),
        (["sft", LEARN, "--model", "{model}", "--data.path", "{gone}"], "there is no such file"),
        (["sft", LEARN, "--model", "{model}", "--data.path", "{rows}/0.jsonl"], "nothing to learn"),
        (["sft", LEARN, "--model", "{model}", "--data.path", "{rows}/1.jsonl"], "shows image 0 of the row"),
        (["sft", LEARN, "--model", "{model}", "--data.path", "{rows}/2.jsonl"], "there is no such image file"),
        (["slurm", TRAIN, "--model", "{model}", "--slurm.nodes", "2", "--dry-run"], "does not join them"),
    ],
)
def test_what_is_refused_leaves_no_folder(tmp_path: Path, tiny_model: Path, words: list[object], message: str) -> None:
    for name in ("empty", "strange", "rows"):
        (tmp_path / name).mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "strange"}')
    (tmp_path / "strange" / "preprocessor_config.json").write_text('{"image_processor_type": "Strange"}')
    shutil.copytree(tiny_model, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*.json"))
    for number, messages in enumerate(ROWS):
        (tmp_path / "rows" / f"{number}.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    places = {"model": tiny_model, "gone": tmp_path / "gone"} | {
        name: tmp_path / name for name in ("empty", "strange", "mute")
    }
    given = [str(word).format(rows=tmp_path / "rows", **places) for word in words]
    directory = tmp_path / "runs" / "one"
    held_out = ["--data.held_out_path", ""] if words[0] == "sft" else []
    done = filmroll_here(*given, *held_out, "--run.directory", directory)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not directory.exists()


def test_no_job_is_written_for_an_evaluation(tmp_path: Path) -> None:
    """Its orchestrator would refuse it, once it had waited for its nodes."""
    run = RunDirectory.create(configured(tmp_path))
    with course(run, "eval"):
        pass
    done = filmroll_here("slurm", "--run", run.path)
    assert done.returncode == 2
    assert "the run of `filmroll eval`. It cannot be gone on with: start another" in done.stderr
    assert not (run.path / "job.sh").exists()


def configured(place: Path, prompts: int = 1) -> Config:
    return Config.model_validate({"run": {"directory": str(place / "run")}, "rl": {"prompts": prompts}})


def ends(run: RunDirectory, error: BaseException) -> None:
    with pytest.raises(type(error)), course(run, "train"):
        raise error


def test_only_a_folder_of_our_own_in_which_no_process_was_started_is_taken_away(tmp_path: Path) -> None:
    run = RunDirectory.create(configured(tmp_path))
    ends(RunDirectory.open(run.path), ConfigError("no"))
    assert run.path.exists()
    ends(run, RunError("lost"))
    assert run.path.exists()
    (run.logs / "engine.log").touch()
    ends(run, ConfigError("no"))
    assert run.path.exists()
    (run.logs / "engine.log").unlink()
    ends(run, FilmrollError("nobody foresaw it"))
    assert run.path.exists()
    ends(run, ConfigError("no"))
    assert not run.path.exists()


def test_a_place_where_a_run_came_to_nothing_takes_another_configuration(tmp_path: Path) -> None:
    first = RunDirectory.at(configured(tmp_path, 1))
    with pytest.raises(ConfigError, match=r"rl\.prompts is 1 there and 2 here"):
        RunDirectory.at(configured(tmp_path, 2))
    ends(first, RunError("the worker ended"))
    again = RunDirectory.at(configured(tmp_path, 2))
    assert (again.config().rl.prompts, again.begun) == (2, False)
    ends(again, KeyboardInterrupt())
    third = RunDirectory.at(configured(tmp_path, 3))
    append_line(third.metrics_file, b'{"phase": "rl", "step": 0}\n')
    ends(third, RunError("the worker ended"))
    with pytest.raises(ConfigError, match=r"rl\.prompts is 3 there and 4 here"):
        RunDirectory.at(configured(tmp_path, 4))


def test_who_comes_early_waits_for_the_next_try(tmp_path: Path) -> None:
    first = RunDirectory.at(configured(tmp_path))
    ends(first, RunError("the worker ended"))
    impatient = load_config(TRAIN, ["--run.directory", str(first.path), "--cluster.patience_s", "0.1"])
    with pytest.raises(ConfigError, match="no run has begun"):
        there_will_be(first.path, impatient)
    RunDirectory.at(configured(tmp_path, 5))
    assert there_will_be(first.path, configured(tmp_path, 5)).config().rl.prompts == 5


def test_a_place_that_can_only_be_read_is_one_sentence(tmp_path: Path, tiny_model: Path) -> None:
    """And what only reads works there."""
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        run = RunDirectory.create(configured(disk.folder))
        with course(run, "train"):
            pass
        append_line(run.metrics_file, b'{"torn')
        disk.close()
        for words in (
            ("train", TRAIN, "--model", tiny_model, "--run.directory", disk.folder / "other"),
            ("train", "--resume", run.path),
            ("orchestrator", "--run", run.path),
            ("slurm", "--run", run.path, "--dry-run"),
            ("report", run.path),
            ("tiny-model", disk.folder / "model"),
        ):
            done = filmroll_here(*words)
            assert done.returncode in (1, 2), (words, done.stderr)
            assert len(done.stderr.splitlines()) == 1
            assert "Read-only file system" in done.stderr, (words, done.stderr)
        assert "has no recorded rollouts" in filmroll_here("rollouts", "show", run.path).stderr
