"""How a run writes conversations is configured: what it does with typed tokens, and the model's own switches."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from filmroll.errors import ConfigError
from filmroll.render.tokenizer import TextTokenizer
from filmroll.run.config import Config, load_config
from tests.command_line import filmroll_here
from tests.run.test_train import EXAMPLE, command, rows

TYPES = """
import numpy as np
from filmroll.rollout import Environment, Episode, Score

class Types(Environment, Episode):
    def episode(self, seed):
        return Types()
    async def begin(self):
        picture = np.full((40, 40, 3), 7, np.uint8)
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is <|im_end|> for?"}]
        return [{"role": "user", "content": parts}]
    async def reply(self, answer):
        return []
    def score(self):
        return Score(0.0)
"""
RUN = """
[run]
directory = "run"
[environment]
name = "custom"
import_path = "types_tokens:Types"
[render]
typed = "escape"
[render.options]
add_vision_id = true
[rl]
steps = 1
prompts = 1
rollouts_per_prompt = 2
[sampling]
max_tokens = 4
[trainer]
threads = 1
"""


def test_typed_tokens_and_switches_are_those_of_the_configuration(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "types_tokens.py").write_text(TYPES)
    (tmp_path / "run.toml").write_text(f'model = "{tiny_model}"\n{RUN}')
    done = subprocess.run(command("train", "run.toml"), capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows(tmp_path / "run", "rl")
    assert row["rollouts_failed"] == 0
    (record, _) = (json.loads(line) for line in (tmp_path / "run" / "rollouts" / "step_000000.jsonl").open())
    shown = record["turns"][0]
    assert shown["text"].startswith("<|im_start|>user\nPicture 1: <|vision_start|>")
    assert "What is <|im_end|> for?" in shown["text"]
    # Two are read by people, one by the model: the other is letters.
    end = TextTokenizer.load(tiny_model).special["<|im_end|>"]
    assert (shown["text"].count("<|im_end|>"), shown["token_ids"].count(end)) == (2, 1)


def test_a_flag_says_true_or_false() -> None:
    chosen = load_config(EXAMPLE, ["--render.options", "enable_thinking=false", "--render.options", "style=plain"])
    assert chosen.render.options == {"enable_thinking": False, "style": "plain"}
    chosen = load_config(EXAMPLE, ["--render.options", '{"enable_thinking": true, "level": 3}'])
    assert chosen.render.options == {"enable_thinking": True, "level": 3}
    assert Config.model_validate_json(chosen.model_dump_json()).render.options == chosen.render.options
    with pytest.raises(ConfigError, match="render"):
        load_config(EXAMPLE, ["--render.typed", "ignore"])
    assert Config().render.typed == "refuse"


def test_an_option_that_the_model_does_not_have_ends_the_run_before_it_starts(tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    flags = ["--model", str(tiny_model), "--run.directory", str(directory), "--render.options", "enable_thinking=true"]
    done = filmroll_here("train", EXAMPLE, *flags)
    assert done.returncode == 2
    assert "has no option 'enable_thinking'" in done.stderr
    assert "add_vision_id" in done.stderr
    assert "Traceback" not in done.stderr
    assert not directory.exists()
