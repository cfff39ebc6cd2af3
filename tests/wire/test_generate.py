"""Generate requests: what agrees with itself is read, everything else names its field."""

import json

import msgspec
import pytest

from filmroll.errors import EngineAnswerError, RequestError
from filmroll.wire.generate import (
    ContentPart,
    GenerateRequest,
    SamplingParams,
    TokenLogprob,
    encode,
    read_answer,
    read_request,
)


def body(**changes):
    request = {
        "token_ids": [1, 2, 2, 2, 3, 2, 2],
        "sampling_params": {"max_tokens": 4},
        "features": {
            "mm_hashes": {"image": ["aa", "bb"]},
            "mm_placeholders": {"image": [{"offset": 1, "length": 3}, {"offset": 5, "length": 2}]},
            "kwargs_data": {"image": ["mmraw:x", "mmraw:y"]},
        },
    }
    return json.dumps(request | changes).encode()


def features(**changes):
    return json.loads(body())["features"] | changes


def test_a_request_reads_back():
    request = GenerateRequest(
        token_ids=[1, 2],
        sampling_params=SamplingParams(max_tokens=3, seed=7, logit_bias={5: -1e9}),
        content_parts=[ContentPart("file:///a.png", uuid="a-b"), ContentPart("data:image/png;base64,")],
        priority=-3,
        cache_salt="salt",
    )
    assert read_request(encode(request)) == request


def test_a_content_part_says_what_it_is():
    """vLLM passes over parts without a type, and answers as if there were no image."""
    request = GenerateRequest([1], SamplingParams(), content_parts=[ContentPart("file:///a.png", uuid="a-b")])
    assert json.loads(encode(request))["content_parts"] == [
        {"type": "image_url", "url": "file:///a.png", "uuid": "a-b"}
    ]


def test_unknown_fields_are_passed_over():
    assert read_request(body(cache_salt="s", stream=False)).token_ids == [1, 2, 2, 2, 3, 2, 2]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [-1]}, "token_ids[0]"),
        ({"token_ids": [2**40]}, "token_ids[0]"),
        ({"token_ids": "abc"}, "token_ids"),
        ({"sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"sampling_params": {"top_p": 0}}, "sampling_params.top_p"),
        ({"sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens"),
        ({"sampling_params": None}, "sampling_params"),
        ({"sampling_params": {"logit_bias": {"a": 1}}}, "sampling_params.logit_bias"),
        ({"priority": 2**63}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "s" * 1025}, "cache_salt"),
        (
            {"features": features(mm_placeholders={"image": [{"offset": 1, "length": 3}]})},
            "features.mm_placeholders.image",
        ),
        ({"features": features(mm_placeholders={})}, "features.mm_placeholders"),
        ({"features": features(kwargs_data={"image": []})}, "features.kwargs_data.image"),
        ({"features": features(kwargs_data={"video": ["a", "b"]})}, "features.kwargs_data"),
        (
            {"features": features(mm_placeholders={"image": [{"offset": 1, "length": 3}, {"offset": 3, "length": 2}]})},
            "features.mm_placeholders.image",
        ),
        (
            {"features": features(mm_placeholders={"image": [{"offset": 5, "length": 2}, {"offset": 1, "length": 3}]})},
            "features.mm_placeholders.image",
        ),
        (
            {"features": features(mm_placeholders={"image": [{"offset": 1, "length": 3}, {"offset": 5, "length": 3}]})},
            "features.mm_placeholders.image",
        ),
    ],
)
def test_a_broken_request_names_its_field(changes, field):
    with pytest.raises(RequestError) as refusal:
        read_request(body(**changes))
    assert refusal.value.field == field
    assert refusal.value.wire()["code"] == 400


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"token_ids": NaN}'])
def test_what_is_no_request_is_refused(raw):
    with pytest.raises(RequestError):
        read_request(raw)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"request_id": "a", "choices": []}', b"<html>"])
def test_what_is_no_answer_is_refused(raw):
    with pytest.raises(EngineAnswerError):
        read_answer(raw)


@pytest.mark.parametrize("named", [{"token_id": 7}, {"token": "token_id:7"}, {"token": " seven", "token_id": 7}])
def test_a_logprob_is_read_in_both_forms(named):
    content = [named | {"logprob": -1.5, "rank": 1, "top_logprobs": []}]
    choice = {"index": 0, "token_ids": [7], "logprobs": {"content": content}, "finish_reason": None}
    answer = read_answer(json.dumps({"request_id": "a", "choices": [choice]}).encode())
    (entry,) = answer.choices[0].logprobs.content
    assert (entry.token_id, entry.logprob) == (7, -1.5)


@pytest.mark.parametrize("entry", [{}, {"token": "seven"}, {"token": "token_id:"}, {"token": "token_id:-7"}])
def test_a_logprob_of_no_token_is_refused(entry):
    choice = {"index": 0, "token_ids": [7], "logprobs": {"content": [entry]}, "finish_reason": None}
    with pytest.raises(EngineAnswerError, match="names no token"):
        read_answer(json.dumps({"request_id": "a", "choices": [choice]}).encode())


def test_a_logprob_is_written_in_both_forms():
    assert json.loads(msgspec.json.encode(TokenLogprob.of(7, -1.5))) == {
        "token_id": 7, "logprob": -1.5, "token": "token_id:7",
    }  # fmt: skip
