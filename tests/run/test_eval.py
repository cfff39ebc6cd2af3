"""Evaluation end to end: of a folder, of a run's weights, of servers; and what rollouts add up to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from filmroll.engine.weights import write_weights
from filmroll.materialize.feed import load_model
from filmroll.rollout.trajectory import Trajectory
from filmroll.run.config import load_config
from filmroll.run.courses.contest import contest
from filmroll.run.courses.standing import pass_at, standing
from filmroll.run.directory import RunDirectory
from tests.command_line import filmroll_here
from tests.conftest import Served

SMALL = [
    "--environment.size", "32", "--environment.turns", "1", "--sampling.max_tokens", "4", "--eval.episodes", "5",
    "--eval.samples", "2", "--eval.batch", "3",
]  # fmt: skip
TRAIN = Path(__file__).parents[2] / "examples" / "color_codeword.toml"


def filmroll(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "filmroll", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, **options)


def records(directory: Path) -> list[dict]:
    return [json.loads(line) for path in sorted((directory / "rollouts").glob("*.jsonl")) for line in path.open()]


def shown(directory: Path) -> list[tuple[str, list[str]]]:
    """Each rollout's name and pictures."""
    return [(one["name"], [image["sha256"] for image in one["images"]]) for one in records(directory)]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("runs") / "eval"
    done = filmroll("eval", tiny_model, "color_codeword", *SMALL, "--run.directory", directory, "--json")
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout)


def test_the_summary_is_what_the_rollouts_say(evaluated: tuple[Path, dict]) -> None:
    directory, summary = evaluated
    played = records(directory)
    assert (summary["episodes"], summary["rollouts"], summary["failed"]) == (5, 10, 0)
    assert summary["reward"] == pytest.approx(sum(one["reward"] for one in played) / 10)
    assert summary["version"] is None
    assert set(summary["pass_at"]) == {"1", "2"}
    assert json.loads((directory / "summary.json").read_text()).items() <= summary.items()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    assert [row["episodes"] for row in rows] == [3, 2]
    assert all(set(row["engine_receipt"].values()) >= {row["images"]} for row in rows)


def test_rollouts_of_an_episode_are_shown_the_same_and_other_episodes_are_not(evaluated: tuple[Path, dict]) -> None:
    by_episode: dict[str, set[tuple[str, ...]]] = {}
    for name, pictures in shown(evaluated[0]):
        by_episode.setdefault(name.split("/")[0], set()).add(tuple(pictures))
    assert len(by_episode) == 5
    assert all(len(pictures) == 1 for pictures in by_episode.values())
    assert len({next(iter(pictures)) for pictures in by_episode.values()}) > 1


def test_the_report_says_what_was_found(evaluated: tuple[Path, dict]) -> None:
    page = (evaluated[0] / "report.html").read_text()
    assert "pass@2" in page
    assert "mean reward" in page
    assert "No step of reinforcement learning" not in page


def test_a_runs_newest_weights_are_played_in_its_own_environment(
    evaluated: tuple[Path, dict], tiny_model: Path, tmp_path: Path
) -> None:
    chosen = {"model": str(tiny_model), "run.directory": str(tmp_path / "trained"), "environment.size": "32"}
    chosen |= {"environment.turns": "1", "sampling.max_tokens": "4"}
    trained = RunDirectory.create(load_config(TRAIN, [word for name in chosen for word in (f"--{name}", chosen[name])]))
    trained.event("started", command="train")
    for version in (1, 2):
        write_weights(load_model(tiny_model).state_dict(), trained.weights, version)
    directory = tmp_path / "eval"
    done = filmroll("eval", trained.path, *SMALL[6:], "--run.directory", directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("mean reward ")
    played = records(directory)
    assert {turn["version"] for one in played for turn in one["turns"] if turn["role"] == "answer"} == {2}
    # The same seed shows the same episodes, whichever model looks at them.
    assert sorted(shown(directory)) == sorted(shown(evaluated[0]))
    assert json.loads((directory / "summary.json").read_text())["version"] == 2


def test_servers_that_run_already_are_asked(
    served: Served, tiny_model: Path, evaluated: tuple[Path, dict], tmp_path: Path
) -> None:
    directory = tmp_path / "eval"
    words = ["--eval.urls", json.dumps([served.url]), "--eval.served_name", "tiny", "--run.directory", directory]
    done = filmroll("eval", tiny_model, "color_codeword", *SMALL, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(shown(directory)) == sorted(shown(evaluated[0]))
    assert not (directory / "processes" / "engine.json").exists()
    assert json.loads((directory / "config.json").read_text())["multimodal"]["mode"] == "inline"


def test_an_environment_is_named_by_its_import_path_or_by_a_file(tmp_path: Path, tiny_model: Path) -> None:
    named = contest(str(tiny_model), "games.maze:Maze", ["--eval.samples", "3"]).config
    assert (named.environment.name, named.environment.import_path) == ("custom", "games.maze:Maze")
    assert named.eval.samples == 3
    file = tmp_path / "eval.toml"
    file.write_text('[environment]\nturns = 2\n[eval]\nepisodes = 7\n[run]\ndirectory = "runs/training"\n')
    from_file = contest(str(tiny_model), str(file), []).config
    assert (from_file.environment.turns, from_file.eval.episodes, from_file.model) == (2, 7, str(tiny_model))
    # It is no run of that training.
    assert from_file.run.directory != "runs/training"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such/model", "color_codeword"], "model"),
        (["{model}"], "no environment is named"),
        (["{model}", "colour_codeword"], "environment"),
        (["{model}", "nowhere:Maze"], "nowhere"),
        (["{model}", "none.toml"], "none.toml cannot be read"),
        (["{model}", "color_codeword", "--eval.episodes", "0"], "eval.episodes"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, tiny_model: Path, words: list[str], said: str) -> None:
    given = [word.replace("{model}", str(tiny_model)) for word in words]
    done = filmroll_here("eval", *given, "--run.directory", tmp_path / "eval", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def rollout(reward: float) -> Trajectory:
    return Trajectory("one", 0, reward=reward, metrics={"partial": reward / 2})


def test_the_error_is_that_of_episodes_not_of_rollouts() -> None:
    """Four equal rollouts of an episode tell no more than one."""
    once = standing([[rollout(1)], [rollout(0)], [rollout(0)]], passes=1, model="m", version=None, failed=0, seconds=1)
    again = standing(
        [[rollout(reward)] * 4 for reward in (1, 0, 0)], passes=1, model="m", version=None, failed=0, seconds=1
    )
    assert once.reward == again.reward == pytest.approx(1 / 3)
    assert once.reward_error == again.reward_error == pytest.approx(math.sqrt(1 / 3) / math.sqrt(3))
    assert again.metrics == {"partial": pytest.approx(1 / 6)}
    assert standing([[rollout(1)]], passes=1, model="m", version=None, failed=0, seconds=1).reward_error is None


def test_pass_at_k_is_estimated_without_replacement() -> None:
    # One of four passes: a pair has it with probability 1/2, three with 3/4.
    assert pass_at([(4, 1)]) == {1: 0.25, 2: 0.5, 4: 1.0}
    assert pass_at([(3, 3), (3, 0)]) == {1: 0.5, 2: 0.5, 3: 0.5}
    # An episode that lost a rollout does not count for as many.
    assert pass_at([(2, 1), (1, 1)]) == {1: 0.75, 2: 1.0}
