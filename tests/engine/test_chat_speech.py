"""What an answer says while it comes: everything that was certain stays true, and at the end nothing is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from filmroll.engine.chat.answers import Paper, Spoken
from filmroll.engine.chat.request import ChatRequest, read_chat
from filmroll.engine.chat.speech import Running, Speech
from filmroll.engine.chat.telling import Told
from filmroll.render import Renderer, load_renderer
from filmroll.store import open_store

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "the door"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def writer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(tiny_model, open_store(tmp_path_factory.mktemp("images")))


def asked(**fields: Any) -> ChatRequest:
    return read_chat(msgspec.json.encode({"messages": [{"role": "user", "content": "a"}], **fields}))


def heard(writer: Renderer, ids: list[int], **fields: Any) -> tuple[Speech, list[str]]:
    """An answer that has been heard to its end, and what was certain after each token."""
    speech = Speech(writer, writer.render([{"role": "user", "content": "a"}]), asked(**fields))
    certain = []
    for token in ids:
        speech.hear(token, -1.0)
        certain.append(speech.certain)
    return speech, certain


def told(writer: Renderer, ids: list[int], **fields: Any) -> tuple[Any, dict[str, Any]]:
    """The answer whole and put together from pieces, both as the openai package reads them."""
    prompt = writer.render([{"role": "user", "content": "a"}])
    paper = Paper("tiny", writer.tokenizer, prompt.logical, with_logprobs=True, with_ids=True)
    speech = Speech(writer, prompt, asked(**fields))
    telling = Told(paper, 0, speech)
    pieces = [telling.role()]
    for token in ids:
        speech.hear(token, -1.0)
        pieces += telling.more()
    spoken = Spoken(speech.whole(), speech.tokens, speech.logprobs, "stop")
    pieces += telling.rest(spoken)
    message: dict[str, Any] = {"content": "", "reasoning_content": None, "tool_calls": [], "token_ids": []}
    for piece in map(ChatCompletionChunk.model_validate, pieces):
        (choice,) = piece.choices
        message["content"] += choice.delta.content or ""
        message["reasoning_content"] = getattr(choice.delta, "reasoning_content", None) or message["reasoning_content"]
        message["tool_calls"] += choice.delta.tool_calls or []
        message["token_ids"] += getattr(choice, "token_ids", [])
    return ChatCompletion.model_validate(paper.whole([spoken])).choices[0], message


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "calls"),
    [
        ("a door.", "a door.", None, 0),
        (f"i look.\n{CALL}", "i look.", None, 1),
        (f"{CALL}\n{CALL}", "", None, 2),
        ("<think>is it red?</think>\n\nyes.", "yes.", "is it red?", 0),
        (f"<think>is it?</think>\n\ni look.\n{CALL}", "i look.", "is it?", 1),
        ("<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", None, 0),
        ("a <tool_call> that has no end", "a\n<tool_call> that has no end", None, 0),
    ],
    ids=["text", "a call", "two calls", "reasoning", "all", "a broken call", "an open call"],
)
def test_all_that_is_said_is_told(writer: Renderer, text: str, content: str, reasoning: str | None, calls: int) -> None:
    ids = [*writer.tokenizer.encode(text), writer.stop_token_ids[0]]
    whole, pieces = told(writer, ids, tools=TOOLS)
    assert (whole.message.content or "", pieces["content"]) == (content, content)
    assert getattr(whole.message, "reasoning_content", None) == pieces["reasoning_content"] == reasoning
    assert whole.token_ids == pieces["token_ids"] == ids
    assert len(whole.logprobs.content) == len(ids)
    for number, call in enumerate(whole.message.tool_calls or []):
        assert call.function.name == "look"
        assert json.loads(call.function.arguments) == {"at": "the door"}
        assert pieces["tool_calls"][number].index == number
        assert pieces["tool_calls"][number].function.arguments == call.function.arguments
    assert len(whole.message.tool_calls or []) == len(pieces["tool_calls"]) == calls


@pytest.mark.parametrize("seed", range(100))
def test_law_what_was_certain_stays_true(writer: Renderer, seed: int) -> None:
    """Of any tokens that are sampled before an answer's end, with and without texts to stop at."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, writer.tokenizer.vocab_size, 80).tolist()
    ids = [token for token in drawn if token not in writer.stop_token_ids]
    text = writer.tokenizer.decode(ids)
    begin = int(rng.integers(0, len(text) - 4))
    stops = [[], [text[begin : begin + 3]], [text[begin : begin + 1], "zz"]][seed % 3]
    speech, certain = heard(writer, ids, stop=stops or None)
    content = speech.whole().content
    assert all(content.startswith(one) for one in certain)
    assert not any(stop in content for stop in stops if stop.strip())


def test_plain_text_is_told_as_it_comes(writer: Renderer) -> None:
    ids = writer.tokenizer.encode("the game is over when the player reaches the door.")
    _, certain = heard(writer, ids)
    assert certain[-1] == "the game is over when the player reaches the door."
    assert len(set(certain)) > len(ids) / 2
    _, with_stop = heard(writer, ids, stop="???")
    assert with_stop[-1] == "the game is over when the player reaches the doo"


def test_characters_of_several_tokens_are_told_whole(writer: Renderer) -> None:
    text = "né 你好 🎞️ done"
    ids = writer.tokenizer.encode(text)
    running = Running(writer.tokenizer)
    pieces = [running.add(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces


def test_a_token_to_stop_at_is_not_said(writer: Renderer) -> None:
    *ids, last = writer.tokenizer.encode("which color is it?")
    speech, certain = heard(writer, [*ids, last], stop_token_ids=[last])
    assert speech.whole().content == writer.tokenizer.decode(ids).strip() == certain[-1]
