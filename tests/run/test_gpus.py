"""Who sees which GPU. There is none here: what is tested is what processes are told, not what they do with it."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from filmroll.engine.vllm.launch import VllmServer, check_flags
from filmroll.engine.vllm.settings import Settings
from filmroll.errors import ConfigError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.claims import dealt_variables
from filmroll.run.members.member import Here
from filmroll.run.members.names import engine_names, trainer_names
from filmroll.run.processes.gpus import SEEN, visible_gpus
from filmroll.run.serving.offer import Offer
from tests.command_line import filmroll_here
from tests.run.test_train import EXAMPLE, command

CUDA = {"device": "cuda"}


def dealt(gpus: str, **sections: dict[str, object]) -> dict[str, str]:
    """What each process of such a run is shown, where these GPUs are visible; a dash where it is told nothing."""
    config = Config.model_validate({**sections, "run": {**sections.get("run", {}), "env_vars": {SEEN: gpus}}})
    names = [*trainer_names(config), *engine_names(config), "worker"]
    return {name: told.get(SEEN, "-") for name, told in dealt_variables(config, names).items()}


@pytest.mark.parametrize(
    ("gpus", "sections", "shown"),
    [
        ("", {}, ["-", "-", "-"]),
        ("0,1", {"trainer": CUDA}, ["0", "-", "-"]),
        ("0,1", {"engine": CUDA}, ["-", "0", "-"]),
        ("3,5", {"trainer": CUDA, "engine": CUDA}, ["3", "5", "-"]),
        ("GPU-a, GPU-b", {"trainer": CUDA, "engine": CUDA}, ["GPU-a", "GPU-b", "-"]),
        ("0,1,2,3", {"trainer": {"ranks": 2, **CUDA}, "engine": {"replicas": 2, **CUDA}}, ["0,1", "2", "3", "-"]),
        ("0,1,2", {"trainer": {"ranks": 2, "nodes": 2, **CUDA}, "engine": CUDA}, ["0", "1", "2", "-"]),
        ("0,1,2,3,4", {"trainer": CUDA, "engine": {"kind": "vllm", "gpus": 2, "replicas": 2}},
         ["0", "1,2", "3,4", "-"]),
        ("", {"engine": {"kind": "vllm", "replicas": 2}}, ["-", "-", "-", "-"]),
        ("0,1", {"engine": {"kind": "vllm", "gpus": 0}}, ["-", "-", "-"]),
        # Who names one sees all, and nobody else is dealt it.
        ("0,1", {"trainer": CUDA, "engine": {"device": "cuda:0"}}, ["1", "-", "-"]),
        ("0,1", {"trainer": {"device": "cuda:1"}, "engine": CUDA}, ["-", "0", "-"]),
        # Shared, as evenly as can be.
        ("0", {"run": {"share_gpus": True}, "trainer": CUDA, "engine": {"replicas": 2, **CUDA}}, ["0", "0", "0", "-"]),
        ("0,1,2", {"run": {"share_gpus": True}, "trainer": {"ranks": 2, **CUDA}, "engine": {"replicas": 2, **CUDA}},
         ["0,1", "2", "0", "-"]),
        # CUDA reads up to the first that is none.
        ("7,-1,8", {"trainer": CUDA}, ["7", "-", "-"]),
    ],
)  # fmt: skip
def test_each_process_is_shown_its_own(gpus, sections, shown):
    assert list(dealt(gpus, **sections).values()) == shown


@pytest.mark.parametrize(
    ("gpus", "sections", "message"),
    [
        ("", {"trainer": CUDA}, f"trainer is to have 1 GPU, and this machine has none: {SEEN} is ''"),
        ("-1", {"trainer": CUDA}, f"this machine has none: {SEEN} is '-1'"),
        ("", {"engine": CUDA}, "engine is to have 1 GPU, and this machine has none"),
        ("0", {"trainer": CUDA, "engine": CUDA}, r"engine is to have 1 GPU, .* machine has 1 GPU \(trainer has 0\)"),
        ("0,1", {"trainer": {"ranks": 3, **CUDA}}, "trainer is to have 3 GPUs, and this machine has 2 GPUs"),
        ("0,1", {"run": {"share_gpus": True}, "trainer": {"ranks": 3, **CUDA}}, "3 GPUs, and this machine has 2 GPUs"),
        ("0,1", {"engine": {"kind": "vllm", "gpus": 2}, "trainer": CUDA}, r"engine is to have 2 GPUs, .*trainer has 0"),
        ("0", {"engine": {"device": "cuda:1"}}, "engine is to be on cuda:1, and this machine has 1 GPU"),
        ("", {"engine": {"device": "cuda:0"}}, "engine is to be on cuda:0, and this machine has none"),
    ],
)  # fmt: skip
def test_too_few_are_refused(gpus, sections, message):
    with pytest.raises(ConfigError, match=message) as refused:
        dealt(gpus, **sections)
    assert ("Take the device cpu" if "none" in message else "run.share_gpus") in str(refused.value)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ({"device": "banana"}, "'banana' is no device: take cpu, cuda"),
        ({"device": "cuda:"}, "'cuda:' is no device"),
        ({"device": "cuda:0", "ranks": 2}, "device is cuda:0, and 2 ranks need as many GPUs: take cuda"),
    ],
)
def test_a_device_that_cannot_be_is_refused(device, message):
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"trainer": device})


@pytest.fixture
def driver(tmp_path):
    """Stands in for the driver's own tool: a machine with these GPUs, or one that says this and fails."""

    def made(said: str, status: int = 0) -> dict[str, str]:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\nexit {status}\n")
        tool.chmod(0o755)
        return {"PATH": str(tmp_path)}

    return made


def test_where_the_environment_says_nothing_the_driver_is_asked(driver, monkeypatch):
    """Its numbers are those of the bus, so CUDA is told to count so."""
    monkeypatch.setenv("PATH", driver("0\n1\n")["PATH"])
    seen = visible_gpus({})
    assert seen.names == ("0", "1")
    assert seen.variables(("1",)) == {SEEN: "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_gpus({SEEN: "1"}).variables(("1",)) == {SEEN: "1"}


def test_a_driver_that_fails_says_why_there_are_none(driver, monkeypatch):
    monkeypatch.setenv("PATH", driver("Driver/library version mismatch", 18)["PATH"])
    assert visible_gpus({}).reason == "nvidia-smi says: Driver/library version mismatch"
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus({}).reason == "there is no nvidia-smi"


def shower(folder: Path) -> Path:
    """A program in vLLM's place that says what it is shown and with which flags."""
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\necho "shown ${{{SEEN}-nothing}} by $*"\n')
    program.chmod(0o755)
    return program


def test_processes_find_it_in_their_environment(tmp_path):
    sections = {
        "run": {"directory": str(tmp_path / "run"), "env_vars": {SEEN: "2,3,4,5,6"}},
        "engine": {"kind": "vllm", "gpus": 2, "replicas": 2, "command": str(shower(tmp_path))},
        "trainer": CUDA,
    }
    run = RunDirectory.create(Config.model_validate(sections))
    config = run.config()
    here = Here(run, config, [*trainer_names(config), *engine_names(config)])

    async def said(name: str) -> str:
        process = await here.start(name, 0)
        await process.exited
        return process.said()

    async def both() -> list[str]:
        return [await said(name) for name in engine_names(config)]

    first, second = asyncio.run(both())
    assert first.startswith("shown 3,4 by serve")
    assert second.startswith("shown 5,6 by serve")
    assert "--tensor-parallel-size 2" in first


def test_a_command_that_wants_more_than_there_are_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv(SEEN, "0")
    run = tmp_path / "run"
    done = filmroll_here(
        "train", EXAMPLE, "--trainer.device", "cuda", "--engine.device", "cuda", "--run.directory", run
    )
    assert done.returncode == 2
    assert "engine is to have 1 GPU, and this machine has 1 GPU (trainer has 0)" in done.stderr
    assert not run.exists()


@pytest.mark.parametrize(
    ("gpus", "flags", "told"),
    [
        (0, [], []),
        (1, [], []),
        (4, [], ["--tensor-parallel-size", "4"]),
        (4, ["--pipeline-parallel-size", "2"], ["--tensor-parallel-size", "2"]),
        (4, ["--data_parallel_size=2", "-pp", "2"], []),
    ],
)
def test_gpus_that_no_flag_speaks_for_share_each_layer(gpus, flags, told):
    check_flags(flags, gpus)
    server = VllmServer("vllm", "model", "model", "127.0.0.1", 1, Settings(store="data:"), gpus=gpus, flags=flags)
    words = server.command()
    found = [words[at : at + 2] for at, word in enumerate(words) if word == "--tensor-parallel-size"]
    assert [word for pair in found for word in pair] == told


@pytest.mark.parametrize(
    ("gpus", "flags", "message"),
    [
        (1, ["-pp", "2"], "among 2 GPUs, and each engine has 1"),
        (4, ["-dp=3"], "among 3 GPUs, and each engine has 4"),
        (2, ["--tensor_parallel_size=2"], "--tensor-parallel-size is given by filmroll"),
    ],
)
def test_flags_that_do_not_fit_the_gpus_are_refused(gpus, flags, message):
    with pytest.raises(ConfigError, match=message):
        check_flags(flags, gpus)


def test_served_replicas_have_their_own_too(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv(SEEN, "0,1,2,3")
    offer = Offer(str(tiny_model), "tiny", "", "", None, "127.0.0.1", [8001, 8002])
    assert [one.environment[SEEN] for one in offer.embedded(threads=1, device="cuda")] == ["0", "1"]
    served = offer.vllm(str(shower(tmp_path)), [], gpus=2, only_references=True)
    assert [one.environment[SEEN] for one in served] == ["0,1", "2,3"]
    assert all("--tensor-parallel-size" in one.command for one in served)
    monkeypatch.setenv(SEEN, "0")
    with pytest.raises(ConfigError, match="replica 1 is to have 1 GPU, and this machine has 1 GPU"):
        offer.embedded(threads=1, device="cuda")
    assert [SEEN in one.environment for one in offer.embedded(threads=1, device="cpu")] == [False, False]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--device", "cuda"], "Torch not compiled with CUDA enabled"), (["--device", "tree"], "tree")],
)
def test_a_device_that_torch_cannot_use_is_said_in_one_line(tiny_model, arguments, reason):
    done = subprocess.run(
        command("serve", tiny_model, "--port", "0", *arguments), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert "cannot use the device" in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_may_go_on_on_other_devices(tmp_path):
    """What they compute stays as it was."""
    begun = RunDirectory.create(Config.model_validate({"run": {"directory": str(tmp_path / "run")}}))
    sections = {"run": {"directory": str(begun.path), "share_gpus": True}, "trainer": {"ranks": 2, **CUDA}}
    elsewhere = Config.model_validate({**sections, "engine": CUDA})
    begun.move(elsewhere)
    now = RunDirectory.same(begun.path, elsewhere).config()
    assert (now.trainer.device, now.trainer.ranks, now.engine.device, now.run.share_gpus) == ("cuda", 2, "cuda", True)
    assert now.run.directory == begun.config().run.directory
    with pytest.raises(ConfigError, match=r"trainer\.lora_rank is 0 there and 9 here"):
        RunDirectory.same(
            begun.path, Config.model_validate({**sections, "trainer": {"ranks": 2, **CUDA, "lora_rank": 9}})
        )
