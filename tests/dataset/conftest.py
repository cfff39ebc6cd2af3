"""Pictures, and files of conversations about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Row = dict[str, Any]
Write = Callable[[Sequence[Row | str]], Path]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three that differ in size and colour."""
    paths = []
    for number, color in enumerate(((220, 40, 40), (40, 180, 60), (50, 80, 220))):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40 + 8 * number, 40), color).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Rows as JSON lines; a str is written as it is."""

    def written(rows: Sequence[Row | str]) -> Path:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return written


def chat(*messages: tuple[str, Any], **more: Any) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in messages], **more}
