"""The page says what the run's folder holds, and stands by itself."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from filmroll.errors import RunError
from filmroll.run.courses.course import course
from filmroll.run.directory import RunDirectory
from filmroll.run.processes.ending import ToldToEnd
from filmroll.view import restarts
from filmroll.view.records import read_run
from filmroll.view.report import write_report
from tests.view.page import Page
from tests.view.runs import START, RunWriter, receipt, rl_row, warmup_row


def page_of(run: RunWriter, control: RunWriter | None = None) -> Page:
    return Page(write_report(run.path, control=control.path if control else None))


def test_the_headline_is_the_mean_reward_of_the_last_ten_steps(finished: RunWriter) -> None:
    page = page_of(finished)
    assert page.text("#final-reward") == "0.90"
    header = page.text("leader")
    assert "codeword finished" in header
    assert "mean reward, last 10 steps" in header
    assert "steps 30 after 5 of warm-up" in header
    assert "wall time 3 min 21 s" in header


def test_the_page_is_written_into_the_run_and_nothing_else_is(finished: RunWriter) -> None:
    before = set(finished.path.rglob("*"))
    path = write_report(finished.path)
    assert path == finished.path / "report.html"
    assert set(finished.path.rglob("*")) - before == {path}


def test_writing_again_gives_the_same_page(finished: RunWriter) -> None:
    first, second = (re.sub(r"▸ [\d :-]+", "", page_of(finished).source) for _ in range(2))
    assert first == second


def test_nothing_outside_the_page_is_referred_to(finished: RunWriter) -> None:
    page = page_of(finished)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert urlsplit(attributes.get(name, "#")).scheme in ("", "data")
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\([\"']?([^\"')]*)", page.source))
    assert "@import" not in page.source
    assert not {"script", "iframe", "object", "embed", "link", "base"} & {tag for tag, _ in page.tags}


def test_a_control_run_and_chance_are_shown_beside_the_reward(finished: RunWriter, tmp_path: Path) -> None:
    (tmp_path / "blank").mkdir()
    control = RunWriter(tmp_path / "blank")
    control.metrics([rl_row(step, 0.02) for step in range(30)])
    finished.events({"time": START, "kind": "note", "chance": 0.0002}, {"time": START + 200, "kind": "finished"})
    page = page_of(finished, control)
    assert "control run 0.02 blank" in page.text("leader")
    assert "by chance 0.0002" in page.text("leader")
    assert "control run" in page.text("figcaption")


def test_bytes_on_the_wire_against_pixels(run: RunWriter) -> None:
    sizes = {"request_bytes": 600_000, "sample_bytes": 300_000, "image_bytes": 100_000, "pixel_bytes": 50_000_000}
    run.metrics([rl_row(step, 0.5, **sizes) for step in range(4)])
    page = page_of(run)
    assert page.text("#ratio") == "50 times less"
    assert "came to 4.00 MB" in page.text("#wire")
    assert "200 MB" in page.text("#wire")


def test_receipts_that_agree(finished: RunWriter) -> None:
    page = page_of(finished)
    table = page.text("#receipts")
    assert "warm-up trainer 480 480 480 480 5 all equal" in table
    assert "reinforcement learning engine 11,520 11,520 11,520 11,520 30 all equal" in table
    assert page.text("bad") == ""


def test_receipts_that_differ_name_the_first_step(run: RunWriter) -> None:
    rows = [rl_row(step, 0.5) for step in range(9)]
    rows[4]["trainer_receipt"] = receipt(192, consumed=191)
    rows[7]["trainer_receipt"] = receipt(192, consumed=0)
    run.metrics(rows)
    page = page_of(run)
    assert page.text("bad") == "differs in 2 steps, first in step 4: 192 / 192 / 192 / 191"
    assert page.text("alarm") == "receipts differ"


def test_a_step_without_its_receipt_is_not_called_equal(run: RunWriter) -> None:
    rows = [rl_row(step, 0.5) for step in range(5)]
    del rows[2]["engine_receipt"]
    run.metrics(rows)
    page = page_of(run)
    assert "all equal, but 1 step without a receipt" in page.text("#receipts")
    assert page.text("alarm") == "receipts incomplete"


def test_images_that_were_missing_are_counted_and_no_difference(run: RunWriter) -> None:
    rows = [rl_row(step, 0.5, images_missing=0, samples_masked=0, image_wait=0.01) for step in range(6)]
    rows[2] |= {"images_missing": 3, "samples_masked": 2, "trainer_receipt": receipt(192) | {"verified": 189}}
    rows[2]["trainer_receipt"] |= {"decoded": 189, "missing": 3}
    run.metrics(rows)
    run.events({"time": START + 105, "kind": "image_missing", "sample": "rl_2/<b>", "turn": 1, "reason": "gone"})
    page = page_of(run)
    assert page.text("alarm") == "images missing 3 2 samples without loss"
    assert "referred to verified decoded consumed missing steps" in page.text("#receipts")
    assert "1,152 1,149 1,149 1,152 3 6 all equal, with those missing" in page.text("#receipts")
    assert "sample rl_2/<b> turn 1 reason gone" in page.text("#run")
    assert "Seconds waited for images" in page.source
    rows[4]["trainer_receipt"] = receipt(192) | {"missing": 1}
    (run.path / "metrics.jsonl").unlink()
    run.metrics(rows)
    assert "differs in 1 step, first in step 4" in page_of(run).text("#receipts")


def test_an_empty_receipt_differs(run: RunWriter) -> None:
    run.metrics([rl_row(0, 0.5), rl_row(1, 0.5, trainer_receipt={})])
    page = page_of(run)
    assert "differs in 1 step, first in step 1: ? / ? / ? / ?" in page.text("#receipts")


def test_what_was_left_out_as_too_old_is_counted(finished: RunWriter, run: RunWriter) -> None:
    assert "too old" not in page_of(finished).text("leader")
    rows = [rl_row(step, 0.5, samples_stale=3 * step, updated=step < 3) for step in range(4)]
    run.metrics([{**row, "entropy": None, "ratio_mean": None, "mismatch_kl": None} for row in rows])
    leader = page_of(run).text("leader")
    assert "samples too old 18" in leader
    assert "steps without update 1" in leader


def test_the_losses_have_their_plots_where_they_have_numbers(finished: RunWriter, run: RunWriter) -> None:
    plain = page_of(finished).text("figcaption")
    assert "Divergence of trainer and engine" in plain
    assert "Divergence from the reference" not in plain
    assert "truncated" not in plain
    run.metrics([rl_row(step, 0.5, reference_kl=0.1 * step, truncated_fraction=0.01) for step in range(4)])
    told = page_of(run).text("figcaption")
    assert "Divergence from the reference" in told
    assert "Share of tokens clipped clipped truncated" in told


def test_held_out_episodes_are_drawn_beside_the_reward(finished: RunWriter, run: RunWriter) -> None:
    """Of a version that was evaluated again after a resume the later figure counts."""
    assert "held-out" not in page_of(finished).text("body")
    run.metrics([rl_row(step, 0.5) for step in range(8)])
    told = {"kind": "evaluated", "time": START, "reward_error": 0.0312, "episodes": 40}
    stood = ((0, 0.1), (4, 0.2), (8, 0.9), (8, 0.7))
    run.events(*({**told, "version": version, "reward": reward} for version, reward in stood), {"kind": "evaluated"})
    assert [(row["version"], row["reward"]) for row in read_run(run.path).evaluations] == [(0, 0.1), (4, 0.2), (8, 0.7)]
    page = page_of(run)
    assert "held-out episodes" in page.text("figcaption")
    assert "held-out episodes 0.70 40 ± 0.031, version 8" in page.text("leader")
    assert page.text("#final-reward") == "0.50"


def test_what_an_environment_measures_is_drawn_under_its_own_name(run: RunWriter) -> None:
    names = ("turns", "<b>steps</b>", "partial")
    run.metrics([rl_row(step, 0.5, metrics=dict.fromkeys(names, 0.1 * step)) for step in range(4)])
    titles = page_of(run).text("figcaption")
    assert "turns" in titles
    assert "<b>steps</b>" in titles


def test_after_a_resume_the_later_rows_count(run: RunWriter) -> None:
    run.metrics([rl_row(step, 0.1) for step in range(20)])
    run.metrics([rl_row(step, 0.7) for step in range(8, 18)])
    page = page_of(run)
    assert page.text("#final-reward") == "0.70"
    assert "steps 18" in page.text("leader")
    assert "12 row(s) from before a resume were superseded" in page.text("notes")


def test_what_was_started_again_is_counted_and_stands_beside_the_curve(run: RunWriter) -> None:
    """A restart of the warm-up is counted and has no place there; a resume is where the steps that count go on."""
    run.metrics([warmup_row(step) for step in range(5)])
    run.metrics([rl_row(step, 0.1) for step in range(20)])
    later = [rl_row(step, 0.7) for step in range(10, 30)]
    run.metrics([{**row, "time": row["time"] + 500} for row in later])
    run.events(
        {"time": START, "kind": "started"},
        {"time": START + 3, "kind": "trainer_restarted", "learnt_again": 2},
        {"time": START + 107, "kind": "engine_restarted", "engine": "engine-1"},
        {"time": START + 109, "kind": "worker_restarted"},
        {"time": START + 115.5, "kind": "engine_restarted", "engine": "engine-0"},
        {"time": START + 300, "kind": "resumed"},
        {"time": START + 640, "kind": "resumed"},
    )
    page = page_of(run)
    told = "engine restarts 2 trainer restarts 1 worker restarts 1 times resumed 2"
    assert told in page.text("leader")
    assert "Dotted: a process that was started again" in page.text("caption")
    assert [(mark.what, mark.step) for mark in restarts.marks(read_run(run.path))] == [
        ("engine", 4), ("worker", 5), ("engine", 8), ("resumed", 10), ("resumed", 20),
    ]  # fmt: skip
    # Drawn twice, wide and narrow: one that stands too near to the one before is not named.
    assert [page.source.count(f">{name}</text>") for name in ("engine", "worker", "resumed")] == [4, 0, 3]


def test_a_run_that_was_never_interrupted_says_nothing_of_it(finished: RunWriter) -> None:
    page = page_of(finished)
    assert "restarts" not in page.text("leader")
    assert "resumed" not in page.text("leader")
    assert "Dotted" not in page.text("caption")


def test_checkpoints_in_a_row_leave_room_for_what_happened_in_between(run: RunWriter) -> None:
    saved = [{"time": START + step, "kind": "checkpoint", "rl": step} for step in range(200)]
    run.events(*saved[:100], {"time": START + 99.5, "kind": "worker_died", "error": "gone"}, *saved[100:])
    told = page_of(run).text("#run").replace("\N{MULTIPLICATION SIGN}", "x")
    assert "Events (201)" in told
    assert "checkpoint x100 rl 99" in told
    assert "worker_died error gone" in told
    assert "checkpoint x100 rl 199" in told
    assert "left out" not in told


def test_a_torn_last_line_is_passed_over_and_said(finished: RunWriter) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "rollouts/step_000029.jsonl"):
        with (finished.path / name).open("a") as file:
            file.write('{"phase": "rl", "step": 30, "rew')
    page = page_of(finished)
    assert page.text("#final-reward") == "0.90"
    for name in ("metrics", "events", "step_000029"):
        assert f"{name}.jsonl: the last line is torn" in page.text("notes")


def test_unreadable_lines_in_between_are_counted(run: RunWriter) -> None:
    run.metrics([rl_row(0, 0.2)])
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n[1, 2]\n" + b"[" * 100_000 + b'\n{"no": "step"}\n')
    run.metrics([rl_row(1, 0.4)])
    page = page_of(run)
    assert "3 unreadable line(s) passed over, the first is line 2" in page.text("notes")
    assert "1 row(s) without a known phase and step passed over" in page.text("notes")
    assert page.text("#final-reward") == "0.30"


def test_an_empty_folder_gives_a_page(run: RunWriter) -> None:
    page = page_of(run)
    assert "not started" in page.text("leader")
    assert "no step yet" in page.text("leader")
    assert "No rollout has been written." in page.text("#rollouts")
    assert "config.json is missing" in page.text("notes")


@pytest.mark.parametrize("rows", [[warmup_row(0)], [rl_row(0, 0.25)], [{"phase": "rl", "step": 0}]])
def test_a_single_step_gives_a_page(run: RunWriter, rows: list[dict[str, object]]) -> None:
    run.metrics(rows)
    assert page_of(run).text("h1") == "codeword"


def test_strange_values_do_not_break_the_page(run: RunWriter) -> None:
    strange = [None, "high", True, float("nan"), float("inf"), 10**400, 1e308, -1, [], {}, {"referenced": "x"}]
    keys = list(rl_row(0, 0.0))[2:]
    run.metrics([{"phase": "rl", "step": step, **dict.fromkeys(keys, value)} for step, value in enumerate(strange)])
    run.events({"kind": "finished", "time": "never"}, {"time": None})
    page = page_of(run)
    assert "loss that is no number" in page.text("notes")


@pytest.mark.parametrize(
    ("last", "age", "status"),
    [
        ("finished", 9e6, "finished"),
        ("failed", 9e6, "failed"),
        ("stopped", 60, "stopped"),
        ("checkpoint", 60, "running"),
        ("phase", 9e4, "stopped"),
    ],
)
def test_the_status(run: RunWriter, last: str, age: float, status: str) -> None:
    at = time.time() - age
    run.events({"time": at - 5, "kind": "started"}, {"time": at, "kind": last, "error": "EngineError: gone"})
    page = page_of(run)
    assert page.text("status") == status
    assert ("EngineError: gone" in page.text("detail")) == (last in ("finished", "failed", "stopped"))


def test_a_run_that_was_told_to_end_has_not_failed_and_says_how_it_goes_on(run: RunWriter) -> None:
    run.events({"time": time.time() - 5, "kind": "started"}, {"time": time.time(), "kind": "stopped"})
    assert page_of(run).text("detail") == "it was told to end, and can be resumed"
    for sign, words in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")):
        with pytest.raises(ToldToEnd), course(RunDirectory(run.path), "train"):
            raise ToldToEnd(sign, "`filmroll train --resume RUN` goes on")
        page = page_of(run)
        assert page.text("status") == "stopped"
        assert page.text("detail") == f"{words}; `filmroll train --resume RUN` goes on"


def test_a_long_run_stays_small(run: RunWriter) -> None:
    run.metrics([rl_row(step, 0.5) for step in range(5000)])
    assert write_report(run.path).stat().st_size < 600_000


def test_keys_and_passwords_are_not_shown(run: RunWriter) -> None:
    engine = {"kind": "remote", "api_key": "sesame", "s3": {"secret_access_key": "sesame"}}
    run.config(model="m", engine=engine, run={"env_vars": {"HF_TOKEN": "sesame"}})
    page = page_of(run)
    assert "sesame" not in page.source
    assert "(not shown)" in page.text("pre")
    assert json.loads(page.text("pre"))["model"] == "m"


def test_many_processes_are_summed_beyond_the_largest(run: RunWriter) -> None:
    memory = {f"worker-{place}": 1e8 + place for place in range(40)}
    run.metrics([rl_row(step, 0.5, memory=memory) for step in range(3)])
    page = page_of(run)
    assert "33 others together" in page.text("#memory")


def test_what_steps_took_of_a_gpu_is_shown_beside_the_processes(run: RunWriter) -> None:
    run.metrics([rl_row(step, 0.5, memory={"trainer": 2e8}, gpu_memory=int(5e9) + step) for step in range(3)])
    assert "trainer's GPU" in page_of(run).text("#memory")


def test_on_a_cpu_there_is_no_gpu_to_show(run: RunWriter) -> None:
    run.metrics([rl_row(step, 0.5, memory={"trainer": 2e8}, gpu_memory=None) for step in range(3)])
    assert "GPU" not in page_of(run).text("#memory")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, finished: RunWriter) -> None:
    with pytest.raises(RunError, match="is not a folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is not a folder"):
        write_report(finished.path, control=tmp_path / "nowhere")


def test_a_report_needs_no_torch_and_no_pyplot() -> None:
    code = (
        "import sys, filmroll.view.report\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
