"""Chat requests that cannot be answered: each is a 4xx that names its field, and the next good one is answered."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from filmroll.engine.chat.request import MAX_BODY_BYTES, MAX_VALUES
from tests.conftest import Served
from tests.engine.asking import data_uri, picture, refused, stored
from tests.store.bombs import announced

CHAT = "/v1/chat/completions"


def shows(*urls: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}} for url in urls]}]


def says(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, **more}]}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


GOOD = data_uri(picture(1))
BOMB = data_uri(dict(announced(20_000, 20_000))["PNG"] or b"")
IMAGE = "messages[0].content[{}].image_url"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{" * 5000}}

BAD: dict[str, tuple[dict[str, Any], str | None]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages of another kind": ({"messages": "hello"}, "messages"),
    "a message of another kind": ({"messages": ["hello"]}, "messages[0]"),
    "nobody": (says("hello", role="narrator"), "messages[0].role"),
    "an old function": (says("hello", role="function"), "messages[0].role"),
    "nothing said": (says(None), "messages[0].content"),
    "a number said": (says(5), "messages[0].content"),
    "sound": (says([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0].type"),
    "a part without a type": (says([{"text": "a"}]), "messages[0].content[0]"),
    "an image without a url": (says([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].image_url"),
    "a number as a url": ({"messages": shows(5)}, "messages[0].content[0].image_url.url"),
    "a bomb": ({"messages": shows(GOOD, BOMB)}, IMAGE.format(1)),
    "text as an image": ({"messages": shows(data_uri(b"hello"))}, IMAGE.format(0)),
    "a path": ({"messages": shows("/etc/passwd")}, IMAGE.format(0)),
    "a file outside": ({"messages": shows(GOOD, GOOD, "file:///etc/passwd")}, IMAGE.format(2)),
    "a file that leads out": ({"messages": shows("file:///tmp/../etc/passwd")}, IMAGE.format(0)),
    "an address inside": ({"messages": shows("http://169.254.169.254/latest/meta-data")}, IMAGE.format(0)),
    "this machine": ({"messages": shows("https://localhost:8000/v1/models")}, IMAGE.format(0)),
    "10,000 images": ({"messages": shows(*[GOOD[:40]] * 10_000)}, None),
    "1,001 images": ({"messages": shows(*[GOOD] * 1001)}, "messages"),
    "an image of the assistant": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": shows(GOOD)[0]["content"]}]},
        "messages",
    ),
    "a prompt too long": (says("a b c d e " * 50_000), "messages"),
    "more values than are counted": (says([{"type": "text", "text": "," * (MAX_VALUES + 1)}]), None),
    "too many new tokens": (says("a") | {"max_tokens": 40_000}, "max_tokens"),
    "no new tokens": (says("a") | {"max_completion_tokens": 0}, "max_completion_tokens"),
    "a temperature of less than none": (says("a") | {"temperature": -1}, "temperature"),
    "a temperature of almost none": (says("a") | {"temperature": 1e-9}, "temperature"),
    "a number as text": (says("a") | {"top_p": "0.5"}, "top_p"),
    "no mass": (says("a") | {"top_p": 0}, "top_p"),
    "too many choices": (says("a") | {"n": 65}, "n"),
    "nothing as a stop": (says("a") | {"stop": ""}, "stop"),
    "many stops": (says("a") | {"stop": ["a"] * 17}, "stop"),
    "others' logprobs": (says("a") | {"logprobs": True, "top_logprobs": 5}, "top_logprobs"),
    "a penalty": (says("a") | {"presence_penalty": 0.5}, "presence_penalty"),
    "another penalty": (says("a") | {"frequency_penalty": -0.5}, "frequency_penalty"),
    "a bias": (says("a") | {"logit_bias": {"5": 10}}, "logit_bias"),
    "JSON": (says("a") | {"response_format": {"type": "json_object"}}, "response_format"),
    "speech": (says("a") | {"modalities": ["text", "audio"]}, "modalities"),
    "a tool that must be": (says("a") | tool() | {"tool_choice": "required"}, "tool_choice"),
    "one tool at a time": (says("a") | tool() | {"parallel_tool_calls": False}, "parallel_tool_calls"),
    "a tool of another type": (says("a") | {"tools": [{"type": "custom"}]}, "tools[0].type"),
    "a tool without a name": (says("a") | {"tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
    "deep tools": (says("a") | tool(parameters=nested(400)), None),
    "misspelled": (says("a") | {"max_token": 5}, "max_token"),
    "another model": (says("a") | {"model": "gpt-4o"}, "model"),
    "a large seed": (says("a") | {"seed": 2**70}, "seed"),
}
ANSWERED = {"deep tools"}
"""What is odd, but can be written down; above all nothing breaks."""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_and_the_next_is_answered(client: httpx.Client, name: str, stream: bool) -> None:
    body, param = BAD[name]
    response = client.post(CHAT, json={"max_tokens": 1, "stream": stream, **body})
    if name in ANSWERED:
        assert response.status_code in (200, 400)
    else:
        error = refused(response)
        assert error["param"] == param or param is None, error
    good = client.post(CHAT, json={"messages": shows(GOOD), "max_tokens": 1})
    assert good.status_code == 200, good.text


BODIES = {
    "nothing": b"",
    "text": b"hello",
    "a list": b"[]",
    "cut short": b'{"messages": [{"role": "user", "con',
    "not unicode": b'{"messages": "\xff"}',
    "lists in lists": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects in objects": b'{"tools": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "a call nested without end": json.dumps(
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": 5}]}]}
    ).encode(),
    "not a number": b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "two million values": b'{"messages": [' + b"1," * 2_000_000 + b"1]}",
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_request_is_refused(client: httpx.Client, name: str) -> None:
    refused(client.post(CHAT, content=BODIES[name]))
    assert client.post(CHAT, json=says("a") | {"max_tokens": 1}).status_code == 200


def test_a_body_has_room_for_images_and_an_end(client: httpx.Client, served: Served) -> None:
    large = data_uri(picture(9, 1200, 900))
    assert len(large) > 4_000_000
    several = client.post(CHAT, json={"messages": shows(large, large, large), "max_tokens": 1})
    assert several.status_code == 200, several.text
    assert refused(client.post(CHAT, content=b" " * (MAX_BODY_BYTES + 1)))["code"] == 413
    assert client.post(CHAT, json={"messages": shows(stored(served, 1).uri), "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("arguments", ["{" * 5000, json.dumps(nested(900)), "not json", "5", "null", "<|im_end|>"])
def test_calls_of_before_may_be_anything(client: httpx.Client, arguments: str) -> None:
    """What a model wrote, or a stranger in its name: answered or refused, never broken."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "b"},
    ]
    response = client.post(CHAT, json={"messages": messages, "max_tokens": 1})
    assert response.status_code in (200, 400), response.text


ROLES = [[], ["assistant"], ["tool"], ["system"], ["system", "system"], ["tool", "user", "assistant"], ["user"] * 50]


@pytest.mark.parametrize("roles", ROLES, ids=str)
def test_any_order_of_messages_is_answered_or_refused(client: httpx.Client, roles: list[str]) -> None:
    messages = [{"role": role, "content": "hello"} for role in roles]
    response = client.post(CHAT, json={"messages": messages, "max_tokens": 1})
    assert response.status_code == 200 or refused(response)
