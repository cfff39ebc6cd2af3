"""The plugin where no vLLM is: when it wraps, what it reads of its settings, and which names it gives to images."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from pydantic import BaseModel

from filmroll.engine.vllm.identity import KEY, establish, identity
from filmroll.engine.vllm.inside.answers import with_receipt, with_version
from filmroll.engine.vllm.inside.requests import forbid_tokens
from filmroll.engine.vllm.references import References
from filmroll.engine.vllm.settings import EXAMPLE, read_settings
from filmroll.engine.vllm.weights import weights_of
from filmroll.errors import ConfigError, RequestError
from filmroll.image import ImageRef
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.generate import VersionSpan, read_answer
from filmroll.wire.receipt import Receipt

DESCRIPTOR = ImageDescriptor(
    image=ImageRef(f"file:///images/{'ab' * 32}.png", "ab" * 32, "image/png", 64, 64, 1234),
    family="qwen_vl",
    layout_fingerprint="0" * 32,
    recipe="1" * 32,
    payload={"image_grid_thw": [[1, 4, 4]]},
    tokens=4,
)

REGISTER = """
import sys
from filmroll.engine.vllm.plugin import install, register
from filmroll.engine.vllm import plugin
from filmroll.engine.vllm.inside import modules

def waiting():
    return sum(type(finder).__module__ == plugin.__name__ for finder in sys.meta_path)

modules.SERVING = "serving"
register()
before = waiting()
register()
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"vllm", "torch", "transformers", "numpy.fft", "starlette"}, loaded
assert waiting() == before > 0

import serving

assert serving.ServingTokens.serve_tokens.__wrapped__ is not None
assert waiting() == before - 1
wrapped = serving.ServingTokens.serve_tokens
register()
assert serving.ServingTokens.serve_tokens is wrapped
"""


def test_only_a_process_that_serves_is_changed_and_only_once(tmp_path: Path) -> None:
    """Engine cores and workers register too: it loads nothing that is large."""
    (tmp_path / "serving.py").write_text("class ServingTokens:\n    async def serve_tokens(self): ...\n")
    subprocess.run([sys.executable, "-c", REGISTER], cwd=tmp_path, check=True)


def test_without_a_store_a_reference_is_refused_and_told_how() -> None:
    features = SimpleNamespace(
        mm_hashes={"image": ["0"]},
        mm_placeholders={"image": [SimpleNamespace(offset=0, length=1)]},
        kwargs_data={"image": ["mmraw:"]},
    )
    request = SimpleNamespace(token_ids=[1], features=features)
    with pytest.raises(RequestError) as caught:
        asyncio.run(References(SimpleNamespace(settings=None)).serve(request, None))
    wire = caught.value.wire()
    assert (wire["code"], wire["param"]) == (400, "features.kwargs_data")
    assert EXAMPLE in wire["message"]


@pytest.mark.parametrize("field", ["features.kwargs_data", "content_parts", None])
def test_images_that_are_no_references_are_refused_where_only_those_are_taken(field: str | None) -> None:
    """One forged tensor ends vLLM's engine."""
    features = SimpleNamespace(mm_hashes={"image": ["0"] if field == "features.kwargs_data" else []})
    parts = [{"type": "image_url", "url": "file:///etc/passwd"}] if field == "content_parts" else None
    request = SimpleNamespace(features=features, content_parts=parts, token_ids=[1], request_id="mine")
    References(SimpleNamespace(settings=None)).admit(request, None)
    guarded = References(SimpleNamespace(settings={"only_references": True}))
    if field is None:
        guarded.admit(request, None)
    else:
        with pytest.raises(RequestError) as caught:
            guarded.admit(request, None)
        assert caught.value.wire()["param"] == field


def test_a_request_id_that_no_answer_could_repeat_is_refused() -> None:
    request = SimpleNamespace(features=None, content_parts=None, token_ids=[1], request_id="\ud800")
    with pytest.raises(RequestError, match="half of a character"):
        References(SimpleNamespace(settings=None)).admit(request, None)


def test_nothing_is_biased_below_tokens_that_are_never_sampled() -> None:
    params = SimpleNamespace(logit_bias={7: -1e30, 8: 1e30, 9: float("nan"), 10: 2.5}, allowed_token_ids=None)
    forbid_tokens(SimpleNamespace(sampling_params=params), [8], -1e9)
    assert params.logit_bias[8] == -1e9
    assert -1e9 < params.logit_bias[7] == params.logit_bias[9] < -1e7
    assert params.logit_bias[10] == 2.5


def test_tokens_that_are_never_sampled_are_not_the_only_ones_allowed() -> None:
    """To vLLM a token that is not allowed is lower than any bias."""
    params = SimpleNamespace(logit_bias=None, allowed_token_ids=[7, 8, 9])
    forbid_tokens(SimpleNamespace(sampling_params=params), [8, 9], -1e9)
    assert params.allowed_token_ids == [7]
    params.allowed_token_ids = [8, 9]
    with pytest.raises(RequestError) as caught:
        forbid_tokens(SimpleNamespace(sampling_params=params), [8, 9], -1e9)
    assert caught.value.field == "sampling_params.allowed_token_ids"


class OldChoice(BaseModel):
    """What vLLM 0.31 answers, as far as filmroll looks."""

    index: int = 0
    logprobs: None = None
    finish_reason: str = "stop"
    token_ids: list[int]


class Choice(OldChoice):
    weight_versions: list[dict[str, object]] | None = None


class Answer(BaseModel):
    request_id: str
    choices: list[OldChoice]


def test_an_answer_that_names_no_version_is_given_the_one_that_sampled_it() -> None:
    answer = Answer(request_id="mine", choices=[OldChoice(token_ids=[5, 6, 7])])
    for named in (with_version(with_receipt(answer, Receipt()), 3), with_receipt(with_version(answer, 3), Receipt())):
        read = read_answer(named.model_dump_json().encode())
        assert read.choices[0].weight_versions == [VersionSpan("3", 0, 3)]
        assert read.choices[0].token_ids == [5, 6, 7]
        assert read.receipt == Receipt()


def test_an_answer_that_names_its_versions_is_believed() -> None:
    spans = [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 1, "end": 3}]
    answer = Answer.model_construct(request_id="mine", choices=[Choice(token_ids=[5, 6, 7], weight_versions=spans)])
    assert with_version(answer, 3) is answer


@pytest.mark.parametrize("answer", [SimpleNamespace(error="no"), (chunk for chunk in ["data: ..."])])
def test_what_is_no_whole_answer_is_given_no_version(answer: object) -> None:
    assert with_version(answer, 3) is answer


@pytest.mark.parametrize(
    ("told", "said"), [({"stoer": "x"}, "stoer"), ({"store": 1}, "store"), ({"readers": 0}, "readers"), ([], "object")]
)
def test_settings_that_are_none_are_refused_by_name(told: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_settings(told)


@pytest.mark.parametrize(
    ("server", "remedy"),
    [
        ({"weight_transfer": None}, "--weight-transfer-config"),
        ({"weight_transfer": "nccl"}, "--weight-transfer-config"),
        ({"api_servers": 2}, "--api-server-count 1"),
        ({"quantization": "fp8"}, "checkpoint that the trainer started with"),
    ],
)
def test_a_server_that_could_not_take_its_weights_does_not_start(server: dict[str, object], remedy: str) -> None:
    good = {"settings": {"weights": "/weights"}, "weight_transfer": "filmroll", "api_servers": 1, "quantization": None}
    with pytest.raises(ConfigError) as caught:
        weights_of(SimpleNamespace(**(good | server)))
    assert remedy in caught.value.remedy
    assert weights_of(SimpleNamespace(settings=None)) is None


def test_names_follow_from_bytes_and_recipe_and_from_the_servers_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    establish()
    name = identity(DESCRIPTOR)
    establish()
    moved = msgspec.structs.replace(DESCRIPTOR, image=msgspec.structs.replace(DESCRIPTOR.image, uri="s3://b/x.png"))
    assert identity(moved) == name
    other = msgspec.structs.replace(DESCRIPTOR.image, sha256="cd" * 32)
    changed = [{"recipe": "2" * 32}, {"image": other}]
    assert len({name, *(identity(msgspec.structs.replace(DESCRIPTOR, **one)) for one in changed)}) == 3
    monkeypatch.setenv(KEY, "another server")
    assert identity(DESCRIPTOR) != name
