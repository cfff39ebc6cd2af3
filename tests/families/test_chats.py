"""Prompts of every family are, token for token, those that its own processor makes by its chat template."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from filmroll.render import Renderer, load_renderer
from filmroll.store import open_store
from tests.families import chats
from tests.families.cases import EVERY_CASE
from tests.families.cases.base import Case
from tests.families.theirs import Theirs

NAMED = {case.name: case for case in EVERY_CASE}
TEMPLATES: dict[str, str | None] = {
    "qwen2_vl-released": None,
    "qwen2_5_vl-class_default": None,
    "gemma3-released": chats.GEMMA3,
    "gemma4": None,
    "glm4v_moe-released": chats.GLM,
    "internvl-released": None,
    "mistral3-released": None,
    "pixtral-released": None,
    "idefics3": chats.SMOLVLM,
    "smolvlm-spelled_markers": chats.SMOLVLM,
    "llava_onevision": chats.LLAVA_ONEVISION,
}
"""Checkpoints whose text is written by a template: the case's own, or one in the way of the released checkpoint."""
SIZES = [(70, 50), (33, 90), (120, 118)]


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", SIZES[number % len(SIZES)], (200, 30 * number, 30)).save(out, "PNG")
    return out.getvalue()


def with_template(folder: Path, template: str | None, into: Path) -> Path:
    """The same checkpoint without weights, with another chat template."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors"))
    if template is not None:
        (into / "chat_template.jinja").write_text(template)
    return into


class Chat:
    """One checkpoint: our renderer and their processor."""

    def __init__(self, case: Case, folder: Path, pool: ProcessPoolExecutor, renderer: Renderer) -> None:
        self.folder, self.renderer = folder, renderer
        self._theirs = Theirs(pool, folder, case.backends[0], flat=case.flat)

    def ours(self, messages: list[Any], tools: Any = None) -> list[int]:
        stored, number = copy.deepcopy(messages), 0
        for message in stored:
            for part in message["content"] if isinstance(message.get("content"), list) else []:
                if part["type"] == "image":
                    part["image"] = picture(number)
                    number += 1
        prompt = self.renderer.render(stored, tools=tools)
        assert len(prompt.images) == number
        expanded: list[int] = prompt.expanded().token_ids.tolist()
        assert len(expanded) == prompt.expanded_length
        return expanded

    def theirs(self, messages: list[Any], tools: Any = None, **options: Any) -> list[int]:
        parts = [part for message in messages for part in message.get("content") or []]
        files = [picture(number) for number in range(sum(part["type"] == "image" for part in parts))]
        ids: list[int] = self._theirs.chat(messages, files, tools, options)
        return ids


@pytest.fixture(scope="session", params=TEMPLATES)
def chat(
    request: Any, built: Callable[[Case], Path], pool: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Chat:
    case, work = NAMED[request.param], tmp_path_factory.mktemp("chat")
    folder = with_template(built(case), TEMPLATES[case.name], work / "model")
    return Chat(case, folder, pool, load_renderer(folder, open_store(work / "images")))


@pytest.mark.parametrize("name", chats.CHATS)
def test_prompts_are_those_of_the_processors_chat_template(chat: Chat, name: str) -> None:
    assert chat.ours(chats.CHATS[name]) == chat.theirs(chats.CHATS[name])
