"""Prompts of every family are, token for token, those that its own processor makes by its chat template."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from renderers import config_from_name, create_renderer
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from filmroll.errors import PrefixError
from filmroll.render import Renderer, load_renderer
from filmroll.store import open_store
from tests.families import chats
from tests.families.cases import EVERY_CASE
from tests.families.cases.base import Case
from tests.families.theirs import Theirs

NAMED = {case.name: case for case in EVERY_CASE}
BY_TEMPLATE: dict[str, str | None] = {
    "qwen2_vl-released": None,
    "qwen2_5_vl-class_default": None,
    "gemma3-released": chats.GEMMA3,
    "gemma4": chats.GEMMA4,
    "glm4v_moe-released": chats.GLM,
    "internvl-released": None,
    "mistral3-released": None,
    "pixtral-released": None,
    "idefics3": chats.SMOLVLM,
    "smolvlm-spelled_markers": chats.SMOLVLM,
    "llava_onevision": chats.LLAVA_ONEVISION,
}
"""Checkpoints whose text is written by a template: the case's own, or one in the way of the released checkpoint."""
BY_LIBRARY: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "qwen3-vl": ("qwen3_vl-released", chats.QWEN3_VL, chats.QWEN_TOKENS),
    "qwen3.5": ("qwen3_5-one_area", chats.QWEN3_5, chats.QWEN_TOKENS),
    "qwen3.5-small": ("qwen3_5-one_area", chats.QWEN3_5_SMALL, chats.QWEN_TOKENS),
    "qwen3.6": ("qwen3_5_moe-no_least_area", chats.QWEN3_6, chats.QWEN_TOKENS),
    "kimi-k2.5": ("kimi_k25-released", chats.KIMI, chats.KIMI_TOKENS),
}
"""Checkpoints whose text the `renderers` library writes, with a template that says the same."""
SIZES = [(70, 50), (33, 90), (120, 118)]


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", SIZES[number % len(SIZES)], (200, 30 * number, 30)).save(out, "PNG")
    return out.getvalue()


def with_template(folder: Path, template: str | None, into: Path, tokens: Sequence[str] = ()) -> Path:
    """The same checkpoint without weights, with another chat template and more tokens."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors"))
    if template is not None:
        (into / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.from_file(str(into / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(token, special=token.startswith("<|"), normalized=False) for token in tokens])
    tokenizer.save(str(into / "tokenizer.json"))
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


@pytest.fixture(scope="session")
def chatting(
    built: Callable[[Case], Path], pool: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Chat]:
    """Makes a chat with a case's checkpoint, once for the same template and options."""

    @cache
    def make(name: str, template: str | None, tokens: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> Chat:
        case, work = NAMED[name], tmp_path_factory.mktemp("chat")
        folder = with_template(built(case), template, work / "model", tokens)
        switches = dict.fromkeys(options, True)
        return Chat(case, folder, pool, load_renderer(folder, open_store(work / "images"), options=switches))

    return make


@pytest.mark.parametrize("name", chats.CHATS)
@pytest.mark.parametrize("case", BY_TEMPLATE)
def test_a_templates_prompts_are_the_processors(chatting: Callable[..., Chat], case: str, name: str) -> None:
    chat = chatting(case, BY_TEMPLATE[case])
    assert chat.ours(chats.CHATS[name]) == chat.theirs(chats.CHATS[name])


@pytest.mark.parametrize("name", chats.CHATS | chats.TOOL_CHATS)
@pytest.mark.parametrize("known", BY_LIBRARY)
def test_the_librarys_prompts_are_the_processors(chatting: Callable[..., Chat], known: str, name: str) -> None:
    chat = chatting(*BY_LIBRARY[known])
    assert chat.renderer.family.renderer == known.removesuffix("-small")
    messages = (chats.CHATS | chats.TOOL_CHATS)[name]
    ours, theirs = chat.ours(messages), chat.theirs(messages)
    if known == "qwen3.5-small" and name in ("turns", "two tools"):
        # It keeps the empty reasoning that its prompts begin an answer with, so that turns extend turns.
        words = chat.renderer.tokenizer
        assert words.decode(ours).replace(f"{chats.UNTHOUGHT}Yes.", "Yes.") == words.decode(theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    "known", [known for known in BY_LIBRARY if known.startswith("qwen") and known != "qwen3.5-small"]
)
def test_pictures_are_numbered_where_that_is_asked(chatting: Callable[..., Chat], known: str) -> None:
    chat = chatting(*BY_LIBRARY[known], ("add_vision_id",))
    messages = chats.CHATS["turns"]
    ours = chat.ours(messages)
    assert ours == chat.theirs(messages, add_vision_id=True)
    assert "Picture 2: " in chat.renderer.tokenizer.decode(ours)


def test_tools_are_written_as_the_template_writes_them(chatting: Callable[..., Chat]) -> None:
    chat = chatting("glm4v_moe-released", chats.GLM)
    function = {"name": "look", "description": 'Looks — at "it".', "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "ä", "times": 2}}}
    messages = [
        chats.said("user", "Look."),
        {"role": "assistant", "content": [chats.text("I do.")], "tool_calls": [call]},
        chats.said("tool", None, "that is it"),
    ]
    expected = chat.theirs(messages, tools)
    assert chat.ours(messages, tools) == expected
    call["function"] = {"name": "look", "arguments": '{"at": "ä", "times": 2}'}  # as OpenAI's API has it
    assert chat.ours(messages, tools) == expected


@pytest.mark.parametrize("case", BY_TEMPLATE)
def test_a_text_and_a_list_of_one_text_are_the_same(chatting: Callable[..., Chat], case: str) -> None:
    chat = chatting(case, BY_TEMPLATE[case])
    messages = chats.CHATS["system"]
    plain = [{"role": message["role"], "content": message["content"][0]["text"]} for message in messages]  # type: ignore[index]
    assert chat.ours(plain) == chat.ours(messages)


BEGUN = {
    "qwen3.5": "<think>\n",
    "qwen3.5-small": chats.UNTHOUGHT,
    "qwen3.6": "<think>\n",
    "kimi-k2.5": "<think>",
}
TOOL = {"name": "look", "description": "Looks — at it.", "parameters": {"type": "object", "properties": {}}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"at": "ä", "times": 2}}}
TEXTS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "x"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y\n"}, {"role": "user", "content": " z"}],
    [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "done", "tool_call_id": "c"},
        {"role": "tool", "content": [chats.text("a"), chats.text("b")], "tool_call_id": "d"},
    ],
]


@pytest.mark.parametrize(
    "tools", [None, [TOOL], [{"type": "function", "function": TOOL}]], ids=["", "tool", "function"]
)
@pytest.mark.parametrize("known", BY_LIBRARY)
def test_text_alone_is_what_the_library_makes_of_it(chatting: Callable[..., Chat], known: str, tools: Any) -> None:
    """With its own tokenizer, transformers': tokens, what is sampled, and the turn after."""
    chat = chatting(*BY_LIBRARY[known])
    renderer = chat.renderer
    name = str(renderer.family.renderer)
    thinks = {"enable_thinking": known != "qwen3.5-small"} if name in ("qwen3.5", "qwen3.6") else {}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(chat.folder)
    theirs = create_renderer(tokenizer, type(config_from_name(name))(**thinks))
    for messages in TEXTS:
        ours = renderer.render(messages, tools=tools)
        expected = theirs.render(messages, tools=tools, add_generation_prompt=True)
        assert ours.logical == expected.token_ids
        apart = [place for place, own in enumerate(ours.sampled) if own != expected.sampled_mask[place]]
        assert not any(ours.sampled[place] for place in apart)
        # The library counts as sampled what a prompt has written when an answer begins.
        begun = renderer.tokenizer.decode([ours.logical[place] for place in apart])
        assert BEGUN.get(known, "").startswith(begun)
        completion = [*renderer.tokenizer.encode("Yes."), renderer.stop_token_ids[0]]
        more = [{"role": "user", "content": "and?"}]
        bridged = theirs.bridge_to_next_turn(ours.logical, completion, more, tools=tools)
        if bridged is None:
            with pytest.raises(PrefixError):
                renderer.bridge(ours, completion, more, tools=tools)
        else:
            assert renderer.bridge(ours, completion, more, tools=tools).logical == bridged.token_ids
