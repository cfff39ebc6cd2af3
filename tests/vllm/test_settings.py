"""What a server is told under `filmroll`: every key is documented with its default, and reaches what it is about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from filmroll.engine.images.resolver import Bounds
from filmroll.engine.vllm.settings import Settings, read_settings
from filmroll.errors import ConfigError
from filmroll.families import load_family

DOCUMENT = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()


def test_every_key_is_documented_and_no_other() -> None:
    table = DOCUMENT.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.+?) \|", table, re.MULTILINE)
    keys = [key for names, _ in rows for key in re.findall(r"\w+", names)]
    assert sorted(keys) == sorted(Settings.__struct_fields__)
    said = {names.strip("`"): default for names, default in rows}
    for key in ("readers", "in_flight", "under_way", "features_ttl_s"):
        assert float(said[key]) == getattr(Settings(), key)
    assert said["pixel_bytes"] == f"{Settings().pixel_bytes >> 30} GiB"


def test_bounds_are_those_of_any_engine_unless_said_otherwise() -> None:
    assert read_settings(None).bounds == Bounds()
    told = {"readers": 3, "in_flight": 5, "under_way": 7, "pixel_bytes": 11}
    assert msgspec.to_builtins(read_settings(told).bounds) == told


@pytest.mark.parametrize(
    "told", [{"in_flight": 0}, {"under_way": 0}, {"pixel_bytes": 0}, {"features_ttl_s": 0}, {"features": 1}]
)
def test_what_would_stop_every_request_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(told))):
        read_settings(told)


def test_features_lie_where_they_are_told_to(tiny_model: Path, tmp_path: Path) -> None:
    family = load_family(tiny_model)
    assert read_settings({}).open_features(family) is None
    told = {"features": str(tmp_path / "run1" / "assets" / "mm_features"), "features_ttl_s": 5}
    opened = read_settings(told).open_features(family)
    assert opened is not None
    assert (opened.run_id, opened.family) == ("run1", family)
