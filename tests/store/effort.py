"""How hard the tests of reliability try: a slice with every `make test`, all of it with `make reliability`."""

from __future__ import annotations

import os

FULL = os.environ.get("FILMROLL_RELIABILITY") == "full"


def effort(small: int, full: int) -> int:
    return full if FULL else small
