"""Every attack of attacks/ against one server."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from target import Target
from verdict import Outcome

FOLDER = Path(__file__).parents[2] / "attacks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef attack(" in path.read_text())

FULL_COUNT = {"bombs", "mutations"}
"""Which make test runs a slice of."""

every_attack = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.reliability if name in FULL_COUNT else ()) for name in NAMES]
)


def outcomes(name: str, target: Target) -> Iterator[Outcome]:
    return iter(import_module(name).attack(target))


def broken(name: str, target: Target) -> list[Outcome]:
    """What got through."""
    tried = list(outcomes(name, target))
    assert tried
    return [one for one in tried if one.wrong]
