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

NAMED = HERMES.replace(
    """{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}""",
    "{{- '<call>' + call.function.name + '<args>' }}",
).replace("tojson + '}\\n</tool_call>'", "tojson")
"""A name and the object of its arguments, and nothing behind it."""

_ARGUMENTS = """{{- call.function.arguments | tojson + '}\\n</tool_call>' }}"""
TAGS = HERMES.replace(
    """{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}""",
    "{{- '\\n<tool_call>' + call.function.name + '\\n' }}",
).replace(
    _ARGUMENTS,
    """{%- for name, value in call.function.arguments.items() %}
            {{- '<arg_key>' + name + '</arg_key>\\n<arg_value>' }}{{ value if value is string else value | tojson }}
            {{- '</arg_value>\\n' }}
        {%- endfor %}
        {{- '</tool_call>' }}""",
)
"""Arguments one by one, a mark around each call."""

INVOKED = HERMES.replace(
    """{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}""",
    """{{- '\\n<calls>\\n' if loop.first }}{{- '<invoke name="' + call.function.name + '">\\n' }}""",
).replace(
    _ARGUMENTS,
    """{%- for name, value in call.function.arguments.items() %}
            {{- '<parameter name="' + name + '">\\n' }}{{ value if value is string else value | tojson }}
            {{- '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</invoke>\\n' }}{{ '</calls>' if loop.last }}""",
)
"""One pair of marks around all calls, another around each, and lines of their own for values."""


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
            "named": ("internvl-released", NAMED),
            "tags": ("internvl-released", TAGS),
            "invoked": ("internvl-released", INVOKED),
        }[name]
        folder = tmp_path_factory.mktemp("calls") / "model"
        shutil.copytree(checkpoint(known), folder)
        (folder / "chat_template.jinja").write_text(template)
        return load_renderer(folder, open_store(tmp_path_factory.mktemp("images")))

    return make


ONE = '{"name": "zoom", "arguments": {"x": 3, "label": "eye"}'
WRITTEN = {
    "hermes": f"I look.\n<tool_call>\n{ONE}}}\n</tool_call>",
    "mistral": f'I look.[TOOL_CALLS][{ONE}, "id": "abcdefghi"}}]',
    "named": 'I look.<call>zoom<args>{"x": 3, "label": "eye"}',
    "tags": "I look.\n<tool_call>zoom\n<arg_key>x</arg_key>\n<arg_value>3</arg_value>\n<arg_key>label</arg_key>\n"
    "<arg_value>eye</arg_value>\n</tool_call>",
    "invoked": 'I look.\n<calls>\n<invoke name="zoom">\n<parameter name="x">\n3\n</parameter>\n'
    '<parameter name="label">\neye\n</parameter>\n</invoke>\n</calls>',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_template_says_how_calls_are_written(templated: Load, name: str) -> None:
    renderer, text = templated(name), WRITTEN[name]
    for said in (text, text.replace("\n", "") + "\n"):
        answer = renderer.parse(sampled(renderer, said), tools=TOOLS)
        assert (answer, answer.reasoning, answer.broken_calls) == ("I look.", None, ())
        (call,) = answer.tool_calls
        assert (call.name, call.arguments) == (CALL.name, CALL.arguments)
    prompt = renderer.render(ASKED, tools=TOOLS)
    anew = renderer.render([*ASKED, answer.message, user("And?")], tools=TOOLS)
    written = renderer.tokenizer.decode(anew.logical)[len(renderer.tokenizer.decode(prompt.logical)) :]
    assert "".join(written.split()).startswith("".join(text.split()))


def test_several_calls_are_heard_in_turn(templated: Load) -> None:
    hermes, mistral = templated("hermes"), templated("mistral")
    two = f"<tool_call>\n{ONE}}}\n</tool_call>\n<tool_call>\n{ONE}}}\n</tool_call>"
    assert hermes.parse(hermes.tokenizer.encode(two)).tool_calls == (CALL, CALL)
    two = f'[TOOL_CALLS][{ONE}, "id": "abcdefghi"}}, {ONE}, "id": "ihgfedcba"}}]'
    assert [call.id for call in mistral.parse(mistral.tokenizer.encode(two)).tool_calls] == ["abcdefghi", "ihgfedcba"]


def test_the_tools_tell_what_is_a_text(templated: Load) -> None:
    """Where texts stand as they are, a number may be either."""
    said = "<tool_call>zoom\n<arg_key>x</arg_key>\n<arg_value>3</arg_value>\n<arg_key>label</arg_key>\n"
    said += "<arg_value>7</arg_value>\n<arg_key>more</arg_key>\n<arg_value>[1,</arg_value>\n</tool_call>"
    renderer = templated("tags")
    ids = renderer.tokenizer.encode(said)
    (call,) = renderer.parse(ids, tools=TOOLS).tool_calls
    assert call.arguments == {"x": 3, "label": "7", "more": "[1,"}
    (call,) = renderer.parse(ids).tool_calls
    assert call.arguments == {"x": 3, "label": 7, "more": "[1,"}


SPELLED_WRONG = {
    "no name": "<tool_call>\n<arg_key>x</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "no value": "<tool_call>zoom\n<arg_key>x</arg_key>\n</tool_call>",
    "a value without an end": "<tool_call>zoom\n<arg_key>x</arg_key>\n<arg_value>3\n</tool_call>",
    "twice the same": "<tool_call>zoom\n" + 2 * "<arg_key>x</arg_key>\n<arg_value>3</arg_value>\n" + "</tool_call>",
    "no end": "<tool_call>zoom\n<arg_key>x</arg_key>\n<arg_value>3</arg_value>",
    "words": "<tool_call>zoom in there\n</tool_call>",
}


@pytest.mark.parametrize("broken", SPELLED_WRONG.values(), ids=SPELLED_WRONG)
def test_a_call_that_is_spelled_wrong_stays_what_was_written(templated: Load, broken: str) -> None:
    renderer = templated("tags")
    answer = renderer.parse(sampled(renderer, f"Hm.\n{broken}"))
    assert (answer, answer.tool_calls, answer.broken_calls) == ("Hm.", (), (broken,))


def test_a_good_call_beside_a_broken_one_is_heard(templated: Load) -> None:
    renderer = templated("hermes")
    good = '<tool_call>\n{"name": "zoom", "arguments": {}}\n</tool_call>'
    for said in (f"{BROKEN['no JSON']}\n{good}", f"{good}\n{BROKEN['no JSON']}"):
        answer = renderer.parse(renderer.tokenizer.encode(said))
        assert answer.tool_calls == (ToolCall("zoom", {}),)
        assert answer.broken_calls == (BROKEN["no JSON"],)


def test_a_call_without_its_end_takes_none_along(templated: Load) -> None:
    renderer = templated("tags")
    good = "<tool_call>zoom\n<arg_key>x</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
    for broken in ("<tool_call>zoom\n<arg_key>x</tool_call>", SPELLED_WRONG["a value without an end"]):
        answer = renderer.parse(renderer.tokenizer.encode(f"{broken}\n{good}"), tools=TOOLS)
        assert answer.tool_calls == (ToolCall("zoom", {"x": 3}),)
        assert answer.broken_calls == (broken,)


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
    for known in ("gemma3-released", "llava_onevision"):
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


@pytest.mark.parametrize("name", ["hermes", "mistral", "named"])
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


@pytest.mark.parametrize("name", ["tags", "invoked"])
def test_law_calls_that_a_template_spells_out_are_read_again(templated: Load, name: str) -> None:
    """Texts come back as they were, white space and all, and whatever else is JSON as what it is."""
    form = templated(name)._text._calls  # type: ignore[attr-defined]
    template = templated(name)._text._template  # type: ignore[attr-defined]
    texts = {"type": "object", "properties": {key: {"type": "string"} for key in "abc"}}
    tools = [{"type": "function", "function": {"name": "zoom", "parameters": texts}}]
    plain = st.text(st.characters(exclude_characters=(SEAM, OPENS, CLOSES, "<"), exclude_categories=["Cs"]), max_size=8)
    worded = st.dictionaries(st.sampled_from("abc"), plain, max_size=3)
    others = st.dictionaries(st.sampled_from("xyz"), st.none() | st.booleans() | st.integers(), max_size=3)

    @settings(max_examples=effort(60, 10_000), deadline=None)
    @given(st.lists(st.tuples(worded, others), min_size=1, max_size=3))
    def law(arguments: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        asked = [words | rest for words, rest in arguments]
        calls = [{"type": "function", "function": {"name": "zoom", "arguments": one}} for one in asked]
        chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Yes.", "tool_calls": calls}]
        read = form.read(template.write(chat).text.partition("Yes.")[2], tools)
        assert ([call.arguments for call in read.calls], read.broken) == (asked, ())

    law()


@pytest.mark.parametrize("name", ["hermes", "mistral", "named", "tags", "invoked"])
def test_law_nothing_that_is_said_is_lost(templated: Load, name: str) -> None:
    """Whatever the text: it is among the words, the calls and the broken calls, or it is a mark."""
    form = templated(name)._text._calls  # type: ignore[attr-defined]
    pieces = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[", "]", "{", "}", '"name": "f"', ",", "\n", "word", "é"]
    pieces += ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<calls>", '<invoke name="', '">', "</invoke>"]
    pieces += ["<call>", "<args>", '<parameter name="', "</parameter>", "</calls>"]
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
