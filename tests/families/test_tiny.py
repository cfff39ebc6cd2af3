"""The tiny model is a checkpoint like any other: the real libraries load it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from renderers.configs import Qwen3VLRendererConfig
from renderers.qwen3_vl import Qwen3VLRenderer
from transformers import AutoConfig, AutoTokenizer

from filmroll.errors import ConfigError
from filmroll.families import load_family
from filmroll.families.tiny import END, MARKER, MARKUP_TOKENS, SPECIAL_TOKENS, build_tiny_model
from filmroll.materialize.feed import load_model

MESSAGES = [
    {"role": "system", "content": "Answer with letters."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Which colour?\n"},
            {"type": "image", "image": Image.new("RGB", (32, 32))},
            {"type": "text", "text": " é"},
        ],
    },
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def test_special_tokens_and_letters_are_one_token_each(tokenizer: Any) -> None:
    for token in (*SPECIAL_TOKENS, *MARKUP_TOKENS, "system", "user", "assistant", "tool", *"ABCDEFGHI"):
        assert len(tokenizer.encode(token)) == 1, token
        assert tokenizer.decode(tokenizer.encode(token)) == token
    assert len(tokenizer.encode("ABCDEFGHI")) == 9
    assert tokenizer.encode("xA<|image_pad|>B")[1:] == tokenizer.convert_tokens_to_ids(["A", "<|image_pad|>", "B"])


def test_every_text_survives_the_tokenizer(tokenizer: Any) -> None:
    text = "Zwölf Boxkämpfer\n\t jagen 拳 🥊 user's tools </tool_call>\x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_has_exactly_the_models_vocabulary(tiny_model: Path, tokenizer: Any) -> None:
    config = AutoConfig.from_pretrained(tiny_model)
    assert config.text_config.vocab_size == len(tokenizer)
    assert tokenizer.eos_token == END
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")


def test_renderers_writes_what_the_chat_template_writes(tokenizer: Any) -> None:
    renderer = Qwen3VLRenderer(tokenizer, Qwen3VLRendererConfig())
    rendered = renderer.render(MESSAGES, add_generation_prompt=True, process_multimodal=False)
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(rendered.token_ids) == text
    assert list(rendered.token_ids) == tokenizer.encode(text)


def test_the_model_is_tiny(tiny_model: Path) -> None:
    assert 0.8e6 < sum(parameter.numel() for parameter in load_model(tiny_model).parameters()) < 1.0e6


def test_the_same_seed_gives_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again, other = build_tiny_model(tmp_path / "again"), build_tiny_model(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {path.name for path in tiny_model.iterdir()} == {path.name for path in again.iterdir()}
    for path in tiny_model.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert (tiny_model / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_a_finished_model_is_kept(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "new" / "tiny")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert build_tiny_model(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_another_model_is_never_overwritten(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="something else"):
        build_tiny_model(folder, seed=1)
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps({**marker, "words": []}))
    with pytest.raises(ConfigError):
        build_tiny_model(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        build_tiny_model(tmp_path / "file")


def test_a_place_where_nothing_can_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"no folder can be made .*file/model"):
        build_tiny_model(tmp_path / "file" / "model")


def test_a_killed_build_leaves_no_model(tmp_path: Path) -> None:
    """Killed when everything but the last step is done: the folder does not exist, and a new build works."""
    code = (
        "import os, signal, sys; from pathlib import Path; from filmroll.families import tiny;"
        "tiny.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL);"
        "tiny.build_tiny_model(Path(sys.argv[1]))"
    )
    folder = tmp_path / "tiny"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert load_family(build_tiny_model(folder)).name == "qwen_vl"
