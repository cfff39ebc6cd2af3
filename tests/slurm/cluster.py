"""A real SLURM from Debian's packages: a controller and two hosts in namespaces of their own, which end with the tests.

`python -m tests.slurm.cluster` sees that it is installed and can be started here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
NAMESPACES = ("-n", "-u", "-m", "-p")
NETWORK = "10.77.0.0/24"
SECONDS_TO_START = 60
HERE = Path(__file__).parent


def install() -> None:
    """Install what is missing where that may be done, else say what to install; and see that hosts can be made."""
    if os.geteuid() != 0:
        sys.exit(f"SLURM's tests make network namespaces, which takes root; and {' '.join(PACKAGES)}")
    if not all(map(shutil.which, PROGRAMS)):
        if shutil.which("apt-get") is None:
            sys.exit(f"SLURM is not installed; on Debian: apt-get install {' '.join(PACKAGES)}")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, check=True)
    bridge = ["unshare", *NAMESPACES, "--fork", "ip", "link", "add", "br0", "type", "bridge"]
    if subprocess.run(bridge, capture_output=True).returncode:
        sys.exit("this kernel makes no network namespaces, or no bridge between them")


class Slurm:
    """A cluster that runs."""

    def __init__(self, folder: Path, inside: int) -> None:
        self._folder = folder
        self._inside = inside

    def run(self, *command: str, check: bool = True, **variables: str) -> str:
        """What a command prints that is run beside the controller."""
        environment = os.environ | {"SLURM_CONF": str(self._folder / "slurm.conf")} | variables
        flags = ["-t", str(self._inside), "-n", "-u", "-m", "-p"]
        done = subprocess.run(
            ["nsenter", *flags, *command], env=environment, capture_output=True, text=True, timeout=120
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout + ("" if check else done.stderr)

    def state(self, job: str) -> str:
        """A job's state in SLURM's words, such as RUNNING."""
        shown = self.run("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def start_now(self, job: str) -> None:
        """Without the two minutes that a job waits which was put back into the queue."""
        self.run("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)

    def daemon(self, node: str) -> psutil.Process:
        """The daemon of a node, to be killed."""
        wanted = ["slurmd", "-D", "-N", node]
        return next(one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == wanted)

    def start_daemon(self, node: str) -> None:
        inside = (self._folder / f"{node}.inside").read_text().strip()
        daemon = f"nohup nsenter -t {inside} -n -u slurmd -D -N {node} >>slurmd.{node}.out 2>&1 &"
        self.run("bash", "-c", f"cd {self._folder}; {daemon}")


@contextmanager
def started_slurm(folder: Path) -> Iterator[Slurm]:
    """Two idle nodes; nothing of them outlives this process."""
    for name in ("slurm.conf", "gres.conf"):
        (folder / name).write_text((HERE / f"{name}.in").read_text().replace("@FOLDER@", str(folder)))
    (folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 ctl\n10.77.0.11 n1\n10.77.0.12 n2\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "state").mkdir()
    for number in range(2):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", str(HERE / "hosts.sh")]
    with (folder / "hosts.out").open("wb") as errors:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command, str(folder)],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
        )
    try:
        if process.stdout.readline() != b"up\n":
            raise RuntimeError(f"the hosts did not start: {(folder / 'hosts.out').read_text()}")
        (first,) = psutil.Process(process.pid).children()
        slurm = Slurm(folder, first.pid)
        _wait_for(slurm)
        yield slurm
    finally:
        process.kill()
        process.wait()


def _wait_for(slurm: Slurm) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while slurm.run("sinfo", "--noheader", "--format=%D %t", check=False).strip() != "2 idle":
        if time.monotonic() > end:
            raise RuntimeError(f"the nodes are not idle: {slurm.run('sinfo', '--long', check=False)}")
        time.sleep(0.2)


if __name__ == "__main__":
    install()
