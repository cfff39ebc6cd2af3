"""A whole run of every model type, with a chat template in the way of its releases: played, learnt, exported.

Turns have two pictures side by side, with nothing between them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from filmroll.families.tokenizer import read_tokenizer
from tests.families import chats
from tests.families.test_chats import with_template
from tests.run.test_train import EXAMPLE, command
from tests.train.every_case import CASES

pytestmark = [pytest.mark.families, pytest.mark.timeout(900)]
QWEN3_VL = (chats.QWEN3_VL, chats.QWEN_TOKENS)
QWEN3_5 = (chats.QWEN3_5, chats.QWEN_TOKENS)
SPOKEN: dict[str, tuple[str, Sequence[str]]] = {
    "gemma3": (chats.GEMMA3, ()),
    "gemma4": (chats.GEMMA4, ()),
    "gemma4_unified": (chats.GEMMA4, ()),
    "idefics3": (chats.SMOLVLM, ()),
    "kimi_k25": (chats.KIMI, chats.KIMI_TOKENS),
    "llava_onevision": (chats.LLAVA_ONEVISION, ()),
    "qwen3_5": QWEN3_5,
    "qwen3_5_moe": QWEN3_5,
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL,
    "smolvlm": (chats.SMOLVLM, ()),
}
"""Templates, and the tokens that they need, of those whose own is not one for chats."""
SMALL = (
    *("--warmup.steps", "2", "--warmup.batch_size", "4", "--rl.steps", "2", "--rl.prompts", "2"),
    *("--rl.rollouts_per_prompt", "2", "--rl.ahead", "0", "--sampling.max_tokens", "6", "--run.control", ""),
    *("--environment.size", "64", "--environment.images_per_turn", "2,2", "--run.checkpoint_every", "2"),
)


def checkpoint(case: str, folder: Path) -> Path:
    """A tiny one that can be talked to: more tokens, where its template needs them, and rows for them."""
    CASES[case].build(folder / "built")
    template, tokens = SPOKEN.get(case, (None, ()))
    spoken = with_template(folder / "built", template, folder / "model", tokens)
    model = AutoModelForImageTextToText.from_pretrained(folder / "built")
    needed = read_tokenizer(spoken).get_vocab_size()
    if needed > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(needed)
    model.save_pretrained(spoken)
    return spoken


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_run_of_every_model_type_comes_to_its_end(case: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train", str(EXAMPLE), "--model", str(checkpoint(case, tmp_path)), "--run.directory", str(run), *SMALL)
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [row["phase"] for row in rows] == ["warmup", "warmup", "rl", "rl"]
    for row in rows:
        receipt = row["trainer_receipt"]
        assert 0 < receipt["referenced"] == receipt["consumed"]
    for row in rows[2:]:
        assert row["rollouts_failed"] == 0
        assert row["on_policy"] == 1
        assert row["logprob_gap_max"] < 1e-4, "engine and trainer see the same"
    exported = tmp_path / "exported"
    subprocess.run(command("export", str(run), str(exported)), check=True, timeout=300)
    AutoModelForImageTextToText.from_pretrained(exported)
