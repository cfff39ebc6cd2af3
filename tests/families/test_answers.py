"""What an answer holds beside its text: reasoning and tool calls, which come back when it is rendered anew."""
# ruff: noqa: F811 - fixtures have the names that tests ask for

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filmroll.render import Renderer, ToolCall, load_renderer
from filmroll.render.markup import CLOSES, OPENS, SEAM
from filmroll.store import open_store
from tests.families.test_turns import Load, checkpoint, load, user  # noqa: F401
from tests.store.effort import effort

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "zoom",
            "description": "Show a part of the picture.",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}, "label": {"type": "string"}}},
        },
    }
]
CALL = ToolCall("zoom", {"x": 3, "label": "eye"})
ASKED = [user(None, "What is it?")]
SHOWN = [user(None, "there", role="tool")]

HERMES = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
    {%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
    {%- if message.content is string %}{{ message.content }}
    {%- else %}{% for part in message.content %}{{ '<IMG_CONTEXT>' if part.type == 'image' else part.text }}{% endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""A mark around each call, as many models write them."""

MISTRAL = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- message.content if message.content }}
        {%- if message.tool_calls %}[TOOL_CALLS][
            {%- for call in message.tool_calls %}
                {%- if call.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}
                {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
                {{- ', "id": "' + call.id + '"}' }}{{ ', ' if not loop.last }}
            {%- endfor %}]
        {%- endif %}
        {{- '</s>' }}
    {%- elif message.role == 'tool' %}[TOOL_RESULTS]{{ message.content | tojson }}[/TOOL_RESULTS]
    {%- else %}[INST]
        {%- if message.content is string %}{{ message.content }}
        {%- else %}{% for part in message.content %}{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}
        {%- endif %}[/INST]
    {%- endif %}
{%- endfor %}"""
"""One pair of marks around all calls, each with a name of its own."""


def sampled(renderer: Renderer, text: str) -> list[int]:
    return [*renderer.tokenizer.encode(text), renderer.stop_token_ids[0]]


HEARD = {
    "qwen3-vl": (
        'I look.\n<tool_call>\n{"name": "zoom", "arguments": {"x": 3, "label": "eye"}}\n</tool_call>',
        None,
        "I look.",
    ),
    "qwen3.5": (
        "Small.\n</think>\n\nI look.\n\n<tool_call>\n<function=zoom>\n<parameter=x>\n3\n</parameter>\n"
        "<parameter=label>\neye\n</parameter>\n</function>\n</tool_call>",
        "Small.",
        "I look.",
    ),
    "kimi-k2.5": (
        "Small.</think>I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.zoom:0"
        '<|tool_call_argument_begin|>{"x": 3, "label": "eye"}<|tool_call_end|><|tool_calls_section_end|>',
        "Small.",
        "I look.",
    ),
}


@pytest.mark.parametrize("known", HEARD)
def test_the_library_tells_reasoning_and_calls_apart_and_writes_them_again(load: Load, known: str) -> None:
    """What is rendered anew is, token for token, what a bridge would have gone on from."""
    renderer = load(known)
    text, reasoning, said = HEARD[known]
    prompt = renderer.render(ASKED, tools=TOOLS)
    completion = sampled(renderer, text)
    answer = renderer.parse(completion, prompt=prompt, tools=TOOLS)
    assert (answer, answer.reasoning, answer.broken_calls) == (said, reasoning, ())
    (call,) = answer.tool_calls
    assert (call.name, call.arguments) == (CALL.name, CALL.arguments)
    named = {} if call.id is None else {"tool_call_id": call.id}
    shown = [{**SHOWN[0], **named}]
    bridged = renderer.bridge(prompt, completion, shown, tools=TOOLS)
    anew = renderer.render([*ASKED, answer.message, *shown], tools=TOOLS)
    assert renderer.tokenizer.decode(anew.logical) == renderer.tokenizer.decode(bridged.logical)
    assert anew.logical == bridged.logical


def test_reasoning_that_does_not_end_is_no_answer(load: Load) -> None:
    """The prompt has begun it: the completion alone would not tell."""
    renderer = load("qwen3.5")
    prompt = renderer.render(ASKED)
    answer = renderer.parse(renderer.tokenizer.encode("So it is"), prompt=prompt)
    assert (answer, answer.reasoning) == ("", "So it is")
    assert answer.message["reasoning_content"] == "So it is"


BROKEN = {
    "no JSON": '<tool_call>\n{"name": "zoom", \n</tool_call>',
    "no name": '<tool_call>\n{"arguments": {}}\n</tool_call>',
    "no arguments": '<tool_call>\n{"name": "zoom", "arguments": [1]}\n</tool_call>',
    "no end": '<tool_call>\n{"name": "zoom", "arguments": {}}',
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("known", ["qwen3-vl", "hermes"])
def test_a_broken_call_stays_what_was_written(load: Load, templated: Load, known: str, broken: str) -> None:
    renderer = load(known) if known == "qwen3-vl" else templated(known)
    answer = renderer.parse(sampled(renderer, f"Hm.\n{broken}"))
    assert (answer, answer.tool_calls, answer.broken_calls) == ("Hm.", (), (broken,))
    anew = renderer.render([*ASKED, answer.message, user("Again?")], tools=TOOLS)
    assert f"Hm.\n{broken}" in renderer.tokenizer.decode(anew.logical)


@pytest.fixture(scope="session")
def templated(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Renderers of templates that write calls, by their names."""

    @cache
    def make(name: str) -> Renderer:
        known, template = {
            "hermes": ("internvl-released", HERMES),
            "mistral": ("pixtral-released", MISTRAL),
        }[name]
        folder = tmp_path_factory.mktemp("calls") / "model"
        shutil.copytree(checkpoint(known), folder)
        (folder / "chat_template.jinja").write_text(template)
        return load_renderer(folder, open_store(tmp_path_factory.mktemp("images")))

    return make


def test_a_template_says_how_calls_are_written(templated: Load) -> None:
    hermes, mistral = templated("hermes"), templated("mistral")
    one = '{"name": "zoom", "arguments": {"x": 3, "label": "eye"}'
    for renderer, text in [
        (hermes, f"I look.\n<tool_call>\n{one}}}\n</tool_call>"),
        (hermes, f"I look.\n\n<tool_call>{one}}}</tool_call>\n"),
        (mistral, f'I look.[TOOL_CALLS][{one}, "id": "abcdefghi"}}]'),
    ]:
        answer = renderer.parse(sampled(renderer, text))
        assert (answer, answer.reasoning, answer.broken_calls) == ("I look.", None, ())
        (call,) = answer.tool_calls
        assert (call.name, call.arguments) == (CALL.name, CALL.arguments)
        prompt = renderer.render(ASKED, tools=TOOLS)
        anew = renderer.render([*ASKED, answer.message, user("And?")], tools=TOOLS)
        written = renderer.tokenizer.decode(anew.logical)[len(renderer.tokenizer.decode(prompt.logical)) :]
        assert "".join(written.split()).startswith("".join(text.split()))
    two = f"<tool_call>\n{one}}}\n</tool_call>\n<tool_call>\n{one}}}\n</tool_call>"
    assert hermes.parse(hermes.tokenizer.encode(two)).tool_calls == (CALL, CALL)
    two = f'[TOOL_CALLS][{one}, "id": "abcdefghi"}}, {one}, "id": "ihgfedcba"}}]'
    assert [call.id for call in mistral.parse(mistral.tokenizer.encode(two)).tool_calls] == ["abcdefghi", "ihgfedcba"]


def test_a_good_call_beside_a_broken_one_is_heard(templated: Load) -> None:
    renderer = templated("hermes")
    good = '<tool_call>\n{"name": "zoom", "arguments": {}}\n</tool_call>'
    for said in (f"{BROKEN['no JSON']}\n{good}", f"{good}\n{BROKEN['no JSON']}"):
        answer = renderer.parse(renderer.tokenizer.encode(said))
        assert answer.tool_calls == (ToolCall("zoom", {}),)
        assert answer.broken_calls == (BROKEN["no JSON"],)


def test_reasoning_goes_where_the_template_reads_it(load: Load, templated: Load) -> None:
    hermes = templated("hermes")
    answer = hermes.parse(sampled(hermes, "<think>\nSmall.\n</think>\n\nAn eye."))
    assert (answer.strip(), answer.reasoning) == ("An eye.", "Small.")
    assert "<think>\nSmall.\n</think>" in hermes.tokenizer.decode(hermes.render([*ASKED, answer.message]).logical)
    # GLM's reads it from the content, and drops it itself once a user speaks again.
    glm = load("glm4v_moe-released")
    prompt, completion = glm.render(ASKED), sampled(glm, "\n<think>Small.</think>\nAn eye.")
    answer = glm.parse(completion, prompt=prompt)
    assert (answer.strip(), answer.reasoning) == ("An eye.", "Small.")
    bridged = glm.bridge(prompt, completion, SHOWN)
    assert glm.tokenizer.decode(glm.render([*ASKED, answer.message, *SHOWN]).logical).split() == (
        glm.tokenizer.decode(bridged.logical).split()
    )


def test_what_a_template_has_no_form_for_stays_text(load: Load) -> None:
    for known in ("gemma3-released", "glm4v_moe-released", "llava_onevision"):
        renderer = load(known)
        text = '<tool_call>{"name": "zoom", "arguments": {}}</tool_call>'
        answer = renderer.parse(renderer.tokenizer.encode(text))
        assert (answer, answer.tool_calls, answer.broken_calls) == (text, (), ())


letters = st.characters(exclude_characters=(SEAM, OPENS, CLOSES), exclude_categories=["Cs"])
"""A renderer lets no mark of its own through to a template."""
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(letters, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(letters, max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_law_calls_that_a_template_writes_are_read_again(templated: Load, name: str) -> None:
    form = templated(name)._text._calls  # type: ignore[attr-defined]
    template = templated(name)._text._template  # type: ignore[attr-defined]

    @settings(max_examples=effort(60, 10_000), deadline=None)
    @given(st.lists(st.dictionaries(st.text(letters, max_size=6), values, max_size=4), min_size=1, max_size=3))
    def law(arguments: list[dict[str, Any]]) -> None:
        calls = [
            {"type": "function", "id": "abcdefghi", "function": {"name": "zoom", "arguments": one}} for one in arguments
        ]
        chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Yes.", "tool_calls": calls}]
        text = template.write(chat).text.partition("Yes.")[2]
        read = form.read(text)
        assert [call.arguments for call in read.calls] == arguments
        assert read.broken == ()

    law()


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_law_nothing_that_is_said_is_lost(templated: Load, name: str) -> None:
    """Whatever the text: it is among the words, the calls and the broken calls, or it is a mark."""
    form = templated(name)._text._calls  # type: ignore[attr-defined]
    pieces = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[", "]", "{", "}", '"name": "f"', ",", "\n", "word", "é"]
    whole = json.dumps({"name": "f", "arguments": {"a": 1}})

    @settings(max_examples=effort(200, 50_000), deadline=None)
    @given(st.lists(st.sampled_from([*pieces, whole]), max_size=12).map("".join))
    def law(text: str) -> None:
        read = form.read(text)
        if not (read.calls or read.broken):
            assert read.text == text
        for word in ("word", "é"):
            assert text.count(word) == sum(part.count(word) for part in (read.text, *read.broken))
        assert text.count(whole) <= len(read.calls) + sum(part.count(whole) for part in (read.text, *read.broken))

    law()
