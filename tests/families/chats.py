"""Chat templates in the ways of the released checkpoints, and conversations to write with them."""

from __future__ import annotations

GEMMA3 = """\
{{- bos_token }}
{%- set opening = namespace(text='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set opening.text = (message.content if message.content is string else message.content[0].text) + '\\n\\n' %}
    {%- else %}
        {%- if message.role not in ('user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}
        {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' + opening.text }}
        {%- set opening.text = '' %}
        {%- if message.content is string %}
            {{- message.content | trim }}
        {%- else %}
            {%- for part in message.content %}
                {{- '<start_of_image>' if part.type == 'image' else part.text | trim }}
            {%- endfor %}
        {%- endif %}
        {{- '<end_of_turn>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""
"""Strips every text, and puts a system prompt into the first turn."""

GEMMA4 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {%- for part in message.content %}
        {{- '<|image|>' if part.type == 'image' else part.text }}
    {%- endfor %}
    {{- '<turn|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn>model\\n' }}
{%- endif %}
"""

GLM = """\
[gMASK]<sop>
{%- if tools %}<|system|>
# Tools
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
{%- endif %}
{%- set last = namespace(user=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- macro body(content) %}
    {%- if content is string %}{{ content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
            {%- else %}{{ part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}<|assistant|>
        {%- set said = body(message.content) %}
        {%- if '</think>' in said and loop.index0 > last.user %}
            {{- '\\n' + said }}
        {%- else %}
            {{- '\\n<think></think>\\n' + said.split('</think>')[-1].strip() }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>' + call.function.name + '\\n' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- '<arg_key>' + name + '</arg_key>\\n<arg_value>' }}
                {{- value if value is string else value | tojson }}
                {{- '</arg_value>\\n' }}
            {%- endfor %}
            {{- '</tool_call>' }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}<|user|>
<tool_response>
{{ body(message.content) }}
</tool_response>
    {%- else %}<|{{ message.role }}|>
{{ body(message.content) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
"""Ends no answer by a token of its own, and drops reasoning as soon as somebody else speaks."""

LLAVA_ONEVISION = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ' ' }}
    {%- for part in message.content | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}
    {%- for part in message.content | selectattr('type', 'equalto', 'text') %}
        {%- if message.role == 'assistant' %}{% generation %}{{ '\\n' + part.text }}{% endgeneration %}
        {%- else %}{{ '\\n' + part.text }}
        {%- endif %}
    {%- endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
"""Writes a space after an earlier answer's role that it does not write where an answer is asked for."""

SMOLVLM = """\
<|im_start|>
{%- for message in messages %}
    {{- message.role | capitalize + (':' if message.content[0].type == 'image' else ': ') }}
    {%- for part in message.content %}
        {{- '<image>' if part.type == 'image' else part.text }}
    {%- endfor %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""
"""Writes the space itself that a model says first."""


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def said(role: str, *parts: str | None) -> dict[str, object]:
    """A message; None is an image."""
    return {"role": role, "content": [{"type": "image"} if part is None else text(part) for part in parts]}


CHATS: dict[str, list[dict[str, object]]] = {
    "text": [said("user", "Hello, world.\nAgain?")],
    "system": [said("system", "Be brief."), said("user", "Which?")],
    "image": [said("user", None, "What is it?")],
    "images among text": [said("user", "This", None, "or", None, None, "that?")],
    "images alone": [said("user", None, None)],
    "empty text": [said("user", None, "")],
    "turns": [said("user", None, "One?"), said("assistant", "Yes."), said("user", "And", None, "?")],
}
"""Conversations that every family's template takes."""

QWEN = """\
{%- set seen = namespace(images=0, user=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set seen.user = loop.index0 %}{% endif %}{% endfor %}
{%- macro body(content) %}
    {%- if content is string %}{{ content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' %}
                {%- set seen.images = seen.images + 1 %}
                {%- if add_vision_id %}{{ 'Picture ' ~ seen.images ~ ': ' }}{% endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}{{ part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.previtem.role != 'tool' }}
        {{- '\\n<tool_response>\\n' + body(message.content) + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {{- '<think>\\n\\n</think>\\n\\n' if thinks and message.role == 'assistant' and loop.index0 > seen.user }}
        {{- body(message.content) + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {{- ('<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n') if thinks }}
{%- endif %}
"""
QWEN3_VL = "{%- set thinks = false %}" + QWEN
QWEN3_5 = "{%- set thinks = true %}{%- set enable_thinking = enable_thinking | default(true) %}" + QWEN
QWEN3_5_SMALL = "{%- set thinks = true %}{%- set enable_thinking = enable_thinking | default(false) %}" + QWEN
"""Of the small models, which do not think unless they are told to."""
QWEN3_6 = "{#- preserve_thinking #}" + QWEN3_5

KIMI = """\
{%- macro body(content) %}
    {%- if content is string %}{{ content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' %}
                {{- '<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\\n' }}
            {%- else %}{{ part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {{- '<|im_' + (message.role if message.role in ('user', 'assistant') else 'system') + '|>' }}
    {{- message.role + '<|im_middle|>' }}
    {{- '<think></think>' if message.role == 'assistant' }}
    {{- '## Return of \\n' if message.role == 'tool' }}
    {{- body(message.content) + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|><think>' }}{% endif %}"""

TOOL_CHATS = {
    "picture of a tool": [
        said("user", "Look."),
        said("assistant", "I do."),
        said("tool", None, "that is it", None),
    ],
    "two tools": [
        said("user", None),
        said("assistant", "Yes."),
        said("tool", "one"),
        said("tool", None),
        said("user", "And?"),
    ],
}
"""Conversations with tools, for families whose templates take their messages."""
UNTHOUGHT = "<think>\n\n</think>\n\n"
QWEN_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
KIMI_TOKENS = (
    "<|im_system|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<think>",
    "</think>",
)
