"""What a chat request may say. Whatever would change the answer and is not to be had here is refused by name."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from filmroll.errors import RequestError
from filmroll.wire.generate import MAX_TOKENS, TokenId, named_field

MAX_BODY_BYTES = 32 * 2**20
"""Room for images inside messages, as data: URIs."""
MAX_VALUES = 2**20
"""Values that a body may hold, counted before it is decoded: a few bytes of JSON can take a hundred of memory."""
MAX_CHOICES = 64

_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)


class ImageUrl(msgspec.Struct, frozen=True):
    url: str


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl | str


Content = str | list[TextPart | ImagePart]


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    function: Function
    id: str = ""
    type: Literal["function"] = "function"


class System(msgspec.Struct, frozen=True, tag_field="role", tag="system"):
    content: Content


class Developer(msgspec.Struct, frozen=True, tag_field="role", tag="developer"):
    content: Content


class User(msgspec.Struct, frozen=True, tag_field="role", tag="user"):
    content: Content


class Tool(msgspec.Struct, frozen=True, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: str = ""
    name: str | None = None


class Assistant(msgspec.Struct, frozen=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


Message = System | Developer | User | Assistant | Tool


class FunctionTool(msgspec.Struct, frozen=True):
    function: dict[str, Any]
    type: Literal["function"] = "function"


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = False


Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Passed = msgspec.Raw | msgspec.UnsetType
"""A field that says nothing about the answer."""


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's fields, and of vLLM's `top_k`, `stop_token_ids` and `return_token_ids`."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    model: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, lt=2**31)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], msgspec.Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], msgspec.Meta(max_length=512)] | None = None
    logprobs: bool | None = None
    tools: list[FunctionTool] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    # What only one value of can be had.
    top_logprobs: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None

    metadata: Passed = msgspec.UNSET
    prompt_cache_key: Passed = msgspec.UNSET
    safety_identifier: Passed = msgspec.UNSET
    service_tier: Passed = msgspec.UNSET
    store: Passed = msgspec.UNSET
    user: Passed = msgspec.UNSET

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def longest(self) -> int | None:
        """How many tokens it asks for at most, if it says so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def functions(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [{"type": "function", "function": tool.function} for tool in self.tools]


_chat = msgspec.json.Decoder(ChatRequest)


def read_chat(body: bytes) -> ChatRequest:
    """A request that can be answered, or a RequestError that names the field."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise RequestError(f"the body holds more than {MAX_VALUES} values")
    try:
        request = _chat.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem, field = named_field(str(error))
        unknown = _UNKNOWN.search(problem)
        if unknown is not None:
            field = unknown[1][:64]
            problem = f"this engine knows no field {field!r}"
        raise RequestError(f"the request cannot be read: {problem}", field=field) from None
    _refuse(request)
    return request


def _refuse(request: ChatRequest) -> None:
    """What the engine cannot do is not passed over in silence."""
    allowed: dict[str, tuple[Any, ...]] = {
        "top_logprobs": (None, 0),
        "tool_choice": (None, "auto", "none"),
        "parallel_tool_calls": (None, True),
        "presence_penalty": (None, 0),
        "frequency_penalty": (None, 0),
        "logit_bias": (None, {}),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
    }
    for field, values in allowed.items():
        if getattr(request, field) not in values:
            offered = " or ".join(repr(value) for value in values[1:])
            raise RequestError(
                "this engine cannot do that", remedy=f"Leave it out, or send {offered}".replace("'", '"'), field=field
            )
    for index, tool in enumerate(request.tools or ()):
        if not isinstance(tool.function.get("name"), str):
            raise RequestError("a tool has a name", field=f"tools[{index}].function")
