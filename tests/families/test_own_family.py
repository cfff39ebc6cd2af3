"""A family in somebody else's package, as docs/families.md shows it, installed by pip and found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "families.md"
SEE = """
import json, sys
import numpy as np
import filmroll
from filmroll import open_store
from filmroll.materialize import Materializer

try:
    family = filmroll.load_family(sys.argv[1])
except filmroll.FilmrollError as error:
    print(json.dumps({"error": type(error).__name__, "said": str(error)}))
    sys.exit()
store = open_store(sys.argv[2])
descriptor = family.describe(store.put(np.full((50, 70, 3), 255, np.uint8)))
values = Materializer(store, family).load([descriptor]).arrays["pixel_values"]
mean = float(values.mean())
print(json.dumps({"name": family.name, "tokens": descriptor.tokens, "shape": values.shape, "mean": mean}))
"""


def wheel(folder: Path, code: str, target: str) -> Path:
    """The package as a build backend would pack it."""
    path = folder / "my_family-1.0-py3-none-any.whl"
    info = "my_family-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("my_family.py", code)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: my-family\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/entry_points.txt", f"[filmroll.families]\nmy_family = {target}\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def see(tmp_path: Path, code: str, target: str) -> dict[str, Any]:
    """What a process says that has the package."""
    site, model = tmp_path / "site", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "my_model", "image_token_id": 7}))
    (model / "preprocessor_config.json").write_text("{}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel(tmp_path, code, target))], check=True)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(site)!r})\n{SEE}",
            str(model),
            str(tmp_path / "s"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def example() -> str:
    match = re.search(r"```python my_family\.py\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def test_it_is_found_and_sees(tmp_path: Path) -> None:
    said = see(tmp_path, example(), "my_family:MyFamily")
    assert said == {"name": "my_family", "tokens": 4, "shape": [1, 3, 32, 32], "mean": 1.0}


@pytest.mark.parametrize(
    ("code", "target", "said"),
    [
        ("import nothing_of_this_name", "my_family:MyFamily", "cannot be loaded"),
        ("MyFamily = 5", "my_family:MyFamily", "no class"),
        ("", "my_family:Missing", "cannot be loaded"),
    ],
)
def test_a_broken_one_is_named(tmp_path: Path, code: str, target: str, said: str) -> None:
    answer = see(tmp_path, code, target)
    assert answer["error"] == "ConfigError"
    assert said in answer["said"]
    assert "my_family" in answer["said"]
