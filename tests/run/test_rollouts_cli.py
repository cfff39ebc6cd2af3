"""`filmroll rollouts show`: tables for people, whole records for tools, and what is said about bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from filmroll.cli import main
from filmroll.render.tokenizer import TextTokenizer
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.run.record import read_record, rollout_record
from tests.train.conftest import PAD, descriptor

HOSTILE = "\x1b[31m[red]<|im_start|>"


def trajectory(number: int) -> Trajectory:
    made = Trajectory(f"rl_5/prompt_{number // 2}/rollout_{number % 2}", PAD, reward=0.5, expected="AB", answer=HOSTILE)
    node = made.add_prompt(ROOT, [65, PAD, 66, PAD], [descriptor(1), descriptor(number)])
    for version in (3, 4):
        made.add_sampled(node, [67, 68], [-0.1, -0.2], temperature=1.0, version=version, finish_reason="stop")
    made.score(1, 0.125)
    return made


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    tokenizer = TextTokenizer.load(tiny_model)
    (tmp_path / "rollouts").mkdir()
    for step in (0, 5):
        rows = [rollout_record(trajectory(number), step, tokenizer) for number in range(4)]
        (tmp_path / "rollouts" / f"step_{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def show(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["filmroll", "rollouts", "show", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return show


def test_an_overview_has_a_line_for_each_rollout(run: Path, show: Any) -> None:
    code, out, err = show(run)
    assert (code, err) == (0, "")
    for number in range(4):
        assert f"rl_5/prompt_{number // 2}/rollout_{number % 2}" in out
    assert "\x1b[31m" not in out


def test_a_rollout_is_shown_turn_by_turn(run: Path, show: Any) -> None:
    code, out, _ = show(run, "--name", "rl_5/prompt_1/rollout_1")
    assert code == 0
    assert "[image 0]" in out
    assert "[image 1]" in out
    assert "answer v3" in out
    assert "1x2x6" in out
    assert "0.125" in out
    assert descriptor(3).image.uri[:40] in out.replace("\n", "")


def test_tools_get_whole_records(run: Path, show: Any) -> None:
    code, out, err = show(run, "--json", "--step", 0, "--name", "*/prompt_1/*")
    assert (code, err) == (0, "")
    records = [read_record(json.loads(line)) for line in out.splitlines()]
    assert [record.name for record in records] == ["rl_5/prompt_1/rollout_0", "rl_5/prompt_1/rollout_1"]
    assert records[0].step == 0
    assert records[0].trajectory().nodes[1].token_ids.tolist() == [67, 68]


def test_a_line_torn_by_a_kill_is_a_note(run: Path, show: Any) -> None:
    path = run / "rollouts" / "step_000005.jsonl"
    path.write_text(path.read_text()[:-40])
    code, out, err = show(run, "--json")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert err.startswith("note: step_000005.jsonl: the last line is torn")


def test_a_rollout_that_disagrees_with_itself_is_passed_over_with_a_note(run: Path, show: Any) -> None:
    path = run / "rollouts" / "step_000005.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(first.replace('"parent": -1', '"parent": 9') + "\n" + rest)
    code, out, err = show(run, "--json")
    assert (code, len(out.splitlines())) == (0, 3)
    assert "its parent is 9" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "is not a folder"),
        ((".",), "has no recorded rollouts"),
        (("RUN", "--step", 3), "step 3 was not recorded. These were: 0, 5"),
        (("RUN", "--name", "rollout"), "no rollout of step 5 is named 'rollout'. One is 'rl_5/prompt_0/rollout_0'"),
        (("RUN", "--step", -1), "--step"),
        (("RUN", "--step", "x"), "--step"),
    ],
)
def test_bad_input_is_one_clear_error(
    run: Path, show: Any, arguments: Any, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    code, out, err = show(*(run if one == "RUN" else one for one in arguments))
    assert code == 2
    assert out == ""
    assert said in err


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\n", b"[]\n", b'{"name": "old", "turns": []}\n', b"[" * 9999])
def test_a_file_without_a_rollout_is_one_clear_error(run: Path, show: Any, content: bytes) -> None:
    (run / "rollouts" / "step_000005.jsonl").write_bytes(content)
    code, out, err = show(run)
    assert (code, out) == (1, "")
    assert "has no rollout that can be read" in err


def test_output_may_go_into_a_file_of_any_encoding(run: Path) -> None:
    command = [sys.executable, "-m", "filmroll", "rollouts", "show", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert len(done.stdout.splitlines()) == 4
