"""One module a family, each with a list CASES: the checkpoints on which the parity suite holds that family.

A new family writes a module here and names it in EVERY_CASE.
"""

from __future__ import annotations

from tests.families.cases import gemma3, gemma4, glm4v, idefics3, internvl, kimi_k25, llava_onevision, pixtral, qwen_vl
from tests.families.cases.base import Case

EVERY_CASE: list[Case] = [
    *qwen_vl.CASES,
    *gemma3.CASES,
    *gemma4.CASES,
    *glm4v.CASES,
    *idefics3.CASES,
    *internvl.CASES,
    *pixtral.CASES,
    *kimi_k25.CASES,
    *llava_onevision.CASES,
]
