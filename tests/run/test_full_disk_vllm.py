"""A vLLM whose disk is full ends with a status of its own choice: that it was the disk, its log says, or cannot."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from filmroll.engine.vllm.launch import VllmServer
from filmroll.engine.vllm.settings import Settings
from filmroll.errors import DiskFullError, RunError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.engine_process import VllmProcess
from filmroll.run.processes.lives import Lives
from tests.disks import small_disk

WRITES = "open({file!r}, 'wb').write(bytes(1 << 20))"
"""What a program may do that knows nothing of us: the traceback says why it could not."""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(Config.model_validate({"run": {"directory": str(tmp_path / "run")}}))


def ended(run: RunDirectory, program: str) -> VllmProcess:
    """A server that does this in place of vLLM, and has ended of it."""
    executable = run.path / "vllm"
    executable.write_text(f"#!{sys.executable}\nimport os\n{program}\n")
    executable.chmod(0o755)

    async def end() -> VllmProcess:
        server = VllmServer(str(executable), "model", "tiny", "127.0.0.1", 1, Settings())
        process = await VllmProcess.begin("engine", run, server, {})
        await process.exited
        return process

    return asyncio.run(end())


def test_one_that_found_its_disk_full_is_not_started_again(run: RunDirectory, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 * 1024) as disk:
        process = ended(run, WRITES.format(file=str(disk.folder / "cache")) + "\nraise SystemExit(3)")
    with pytest.raises(DiskFullError, match=r"process engine ended because a disk is full .*No space left on device"):
        Lives(5).spend(process)


def test_one_whose_log_is_on_the_full_disk_can_say_nothing(run: RunDirectory) -> None:
    with small_disk(run.logs, 64 * 1024) as disk:
        disk.fill()
        process = ended(run, "raise KeyError('there is no room for these words')")
        with pytest.raises(DiskFullError, match="it said nothing"):
            Lives(5).spend(process)


def test_one_that_fails_otherwise_may_try_again(run: RunDirectory, tmp_path: Path) -> None:
    """So may one that a signal has ended, and what another said under its name before is not its own."""
    lives = Lives(5)
    with small_disk(tmp_path / "disk", 64 * 1024) as disk:
        writes = WRITES.format(file=str(disk.folder / "cache"))
        killed = f"try:\n    {writes}\nexcept OSError as error:\n    print(error, flush=True)\nos.kill(os.getpid(), 9)"
        process = ended(run, killed)
    assert "No space left on device" in process.said()
    assert process.exited.result() == -signal.SIGKILL
    lives.spend(process)
    process = ended(run, "raise KeyError('name')")
    assert isinstance(process.lost(), RunError)
    assert "it last said: KeyError: 'name'" in process.last_words()
    lives.spend(process)
    assert "it said nothing" in ended(run, "raise SystemExit(1)").last_words()
