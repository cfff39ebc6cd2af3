"""One module a family, each with a list CASES: the checkpoints on which the parity suite holds that family.

A new family writes a module here and names it in EVERY_CASE.
"""

from __future__ import annotations

from tests.families.cases import glm4v, qwen_vl
from tests.families.cases.base import Case

EVERY_CASE: list[Case] = [
    *qwen_vl.CASES,
    *glm4v.CASES,
]
