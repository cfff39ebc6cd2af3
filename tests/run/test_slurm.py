"""What `filmroll slurm` writes: every line of it, and what it refuses to write. tests/slurm has SLURM run it."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from filmroll.errors import ConfigError
from filmroll.run.cluster.slurm import job_script, layout
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.processes.variables import IMAGES
from tests.run.test_train import EXAMPLE, command

CUDA = {"device": "cuda"}


def made(tmp_path, name="run", **sections):
    run = RunDirectory.create(Config.model_validate({"run": {"directory": str(tmp_path / name)}, **sections}))
    return run, run.config()


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def started(script):
    return [line.removesuffix(" &") for line in script.splitlines() if re.match(r"step \w", line)]


def bash(program, *arguments, **variables):
    done = subprocess.run(
        ["bash", "-c", program, *arguments], capture_output=True, text=True, env=os.environ | variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_node_asks_for_what_is_configured_and_no_more(tmp_path):
    run, config = made(tmp_path)
    script = job_script(run, config)
    assert directives(script) == [
        f"--job-name={run.manifest_name()}",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--signal=B:USR1@300",
        f'--output="{run.logs}/slurm-%j.log"',
        "--open-mode=append",
        "--exclusive",
        "--requeue",
    ]
    assert started(script) == [
        "step trainer 0 - trainer",
        "step engine 0 - engine --name engine",
        "step worker 0 - worker",
    ]


def test_several_nodes_with_gpus_are_dealt_out(tmp_path):
    chosen = {
        "partition": "gpu", "account": "vision", "time": "24:00:00", "nodes": 3, "cpus_per_node": 16,
        "gpus_per_node": 4, "worker_node": 2, "warn_s": 600,
        "lines": ["--qos=high", "--mail-type=END"],
        "setup": ["module load cuda", "export A='b c'"],
    }  # fmt: skip
    engine = {"kind": "vllm", "replicas": 3, "gpus": 2}
    run, config = made(tmp_path, slurm=chosen, engine=engine, trainer=CUDA, cluster={"network": "hostname"})
    script = job_script(run, config)
    assert directives(script) == [
        f"--job-name={run.manifest_name()}",
        "--partition=gpu",
        "--account=vision",
        "--time=24:00:00",
        "--nodes=3",
        "--ntasks-per-node=1",
        "--cpus-per-task=16",
        "--gpus-per-node=4",
        "--signal=B:USR1@600",
        f'--output="{run.logs}/slurm-%j.log"',
        "--open-mode=append",
        "--requeue",
        "--qos=high",
        "--mail-type=END",
    ]
    assert started(script) == [
        "step trainer 0 0 trainer",
        "step engine-0 1 0,1 engine --name engine-0",
        "step engine-1 2 0,1 engine --name engine-1",
        "step engine-2 1 2,3 engine --name engine-2",
        "step worker 2 none worker",
    ]
    assert "\nmodule load cuda\nexport A='b c'\n" in script


def test_what_stands_between_is_the_file_that_people_read(tmp_path):
    """Only the names in it are filled in, and bash can read the whole."""
    run, config = made(tmp_path, name="it's a run")
    script = job_script(run, config)
    assert not re.findall(r"@[A-Z]+@", script)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (line,) = re.findall(r"^RUN=.*$", script, re.MULTILINE)
    assert bash(f'{line}; printf %s "$RUN"') == str(run.path)
    (line,) = re.findall(r"^PYTHON=.*$", script, re.MULTILINE)
    assert bash(f'{line}; printf %s "$PYTHON"') == sys.executable


@pytest.mark.parametrize(
    ("given", "have", "seen"),
    [
        ("0", "0,1", "0"),
        ("1,2", "4,5,6", "5,6"),
        ("none", "0,1", ""),
        ("0", "GPU-ab,GPU-cd", "GPU-ab"),
        ("-", "7", "7"),
    ],
)
def test_a_process_sees_the_gpus_of_the_job_that_it_was_given(tmp_path, given, have, seen):
    see = re.search(r"^see='\n(.*?)'$", job_script(*made(tmp_path)), re.MULTILINE | re.DOTALL)[1]
    told = bash(see, given, "bash", "-c", 'printf %s "$CUDA_VISIBLE_DEVICES"', CUDA_VISIBLE_DEVICES=have)
    assert told == seen


def test_on_one_node_engines_have_the_gpus_after_the_trainers(tmp_path):
    _, config = made(tmp_path, slurm={"gpus_per_node": 4}, engine={"replicas": 2, **CUDA}, trainer={"ranks": 2, **CUDA})
    assert [(step.name, list(step.gpus)) for step in layout(config)] == [
        ("trainer", [0, 1]),
        ("engine-0", [2]),
        ("engine-1", [3]),
        ("worker", []),
    ]


def test_a_trainer_over_several_nodes_is_a_step_on_each_with_its_share_of_the_ranks(tmp_path):
    sections = {
        "slurm": {"nodes": 4, "gpus_per_node": 4, "trainer_node": 1},
        "trainer": {"ranks": 4, "nodes": 2, **CUDA},
        "engine": {"replicas": 3, **CUDA},
        "cluster": {"network": "hostname"},
    }
    assert started(job_script(*made(tmp_path, **sections))) == [
        "step trainer-0 1 0,1 trainer --name trainer-0",
        "step trainer-1 2 0,1 trainer --name trainer-1",
        "step engine-0 0 0 engine --name engine-0",
        "step engine-1 3 0 engine --name engine-1",
        "step engine-2 0 1 engine --name engine-2",
        "step worker 0 none worker",
    ]
    sections["slurm"] = {"nodes": 2, "gpus_per_node": 4}
    _, config = made(tmp_path, name="full", **sections)
    assert [(step.name, step.node, list(step.gpus)) for step in layout(config)] == [
        ("trainer-0", 0, [0, 1]),
        ("trainer-1", 1, [0, 1]),
        ("engine-0", 0, [2]),
        ("engine-1", 1, [2]),
        ("engine-2", 0, [3]),
        ("worker", 0, []),
    ]


def test_who_is_on_no_gpu_sees_none_and_few_are_shared_where_that_is_asked_for(tmp_path):
    _, config = made(tmp_path, slurm={"gpus_per_node": 4}, engine=CUDA)
    assert [(step.name, list(step.gpus)) for step in layout(config)] == [
        ("trainer", []),
        ("engine", [0]),
        ("worker", []),
    ]
    sections = {"slurm": {"gpus_per_node": 1}, "engine": CUDA, "trainer": CUDA}
    run = {"directory": str(tmp_path / "shared"), "share_gpus": True}
    shared = Config.model_validate({"run": run, **sections})
    assert [list(step.gpus) for step in layout(shared)] == [[0], [0], []]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"slurm": {"nodes": 2}}, r"2 nodes, and cluster\.network 127\.0\.0\.0/8 does not join them"),
        (
            {"slurm": {"gpus_per_node": 1}, "trainer": CUDA, "engine": CUDA},
            r"engine is to have 1 GPU, and node 0 has 1 GPU \(trainer has 0\)",
        ),
        ({"slurm": {"trainer_node": 1}}, "trainer is to be on node 1, but the job's nodes are 0 to 0"),
        ({"trainer": {"ranks": 2, "nodes": 2}}, "trainer-1 is to be on node 1, but the job's nodes are 0 to 0"),
        ({"slurm": {"engine_nodes": [3]}}, "engine is to be on node 3"),
        ({"run": {"env_vars": {IMAGES: "/elsewhere"}}}, "/elsewhere"),
    ],
)
def test_what_cannot_run_is_not_written(tmp_path, sections, message):
    sections = {**sections, "run": {"directory": str(tmp_path / "run"), **sections.get("run", {})}}
    run = RunDirectory.create(Config.model_validate(sections))
    with pytest.raises(ConfigError, match=message):
        job_script(run, run.config())


@pytest.mark.parametrize("field", ["partition", "account", "time"])
@pytest.mark.parametrize("value", ["a b", "a\nrm -rf x", 'a"b', "a'b"])
def test_a_field_is_one_word(field, value):
    with pytest.raises(ValueError, match=field):
        Config.model_validate({"slurm": {field: value}})


@pytest.mark.parametrize("line", ["-x", "--a\n#SBATCH --b", "echo"])
def test_a_line_is_an_option(line):
    with pytest.raises(ValueError, match="lines"):
        Config.model_validate({"slurm": {"lines": [line]}})


def test_the_command_writes_it_and_says_where_there_is_no_slurm(tmp_path):
    folder = tmp_path / "run"
    given = command("slurm", str(EXAMPLE), "--run", str(folder))
    nowhere = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run([*given, "--dry-run"], capture_output=True, text=True, env=nowhere, timeout=100)
    assert (done.returncode, done.stdout) == (0, f"{folder / 'job.sh'}\n")
    assert os.access(folder / "job.sh", os.X_OK)
    assert f"RUN={shlex.quote(str(folder))}" in (folder / "job.sh").read_text()
    again = subprocess.run(
        command("slurm", "--run", str(folder)), capture_output=True, text=True, env=nowhere, timeout=100
    )
    assert again.returncode == 1
    assert "there is no sbatch on this machine" in again.stderr
