"""Each model type of the house that vLLM serves: references give what the trainer's forward gives.

A server of its own for each takes most of the time, so this is not part of `make test-vllm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from filmroll.families import FAMILIES
from filmroll.image import ImageRef
from filmroll.store import open_store
from tests.vllm.conftest import desk_of
from tests.vllm.conversations import Body, Desk
from tests.vllm.serving import Answer, Server, serving
from tests.vllm.test_refusals import FORGED
from tests.vllm.tiny_models import MODELS
from tests.vllm.trainer import Trainer

pytestmark = pytest.mark.vllm_families

Judge = Callable[[Body, Sequence[ImageRef]], Answer]

TOLERANCE = 1e-5
"""Of a logprob, in float32; seen are differences of half a millionth."""
LOOSER = {"kimi_k25": 2e-3}
"""Where vLLM's language model and transformers' differ by more, without any picture, too."""
CAUSAL = {"gemma3", "gemma4", "gemma4_unified"}
"""In these a picture's tokens see each other, but not in vLLM's attention on a CPU."""
UNSERVED = {"glm46v"}
"""vLLM 0.32 has no class of its own for it; the GLM-4.6V that are released are of the model types beside it."""
ROUGH = {"qwen3_5", "qwen3_5_moe"}
"""vLLM's linear attention on a CPU wants bfloat16, in which no two ways to add up agree: what is compared with is
what vLLM says to the same pictures in `data:` URIs."""
SHOWN = {"one": (0,), "two sizes": (1, 3), "the same twice": (4, 4), "one again between others": (1, 4, 1, 2)}
"""Seeds of pictures, whose sizes follow from them."""
FORGERIES = ("size", "tokens", "fingerprint", "recipe", "hash", "offset", "length", "swapped references")


@pytest.fixture(scope="module", params=MODELS)
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def desk(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("model")
    MODELS[model_type](folder / "model")
    return desk_of(folder / "model", folder, open_store(folder / "images"))


@pytest.fixture(scope="module")
def trainer(model_type: str, desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    family = copy(desk.family)
    if model_type in CAUSAL:
        family.forward = replace(family.forward, marks=None)
    return Trainer(replace(desk, family=family), tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def vllm(model_type: str, desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    flags = ("--dtype", "bfloat16") if model_type in ROUGH else ()
    with serving(desk.model, desk.outside, log, {"store": str(desk.store_dir)}, flags) as server:
        yield server


def test_every_model_type_is_here() -> None:
    known = {model_type for family in FAMILIES for model_type in family.model_types}
    assert known == MODELS.keys() | UNSERVED


@pytest.fixture
def judge(model_type: str, vllm: Server, desk: Desk, trainer: Trainer) -> Judge:
    """Asks, and compares the answer's logprobs."""

    def judged(body: Body, pictures: Sequence[ImageRef]) -> Answer:
        answer = vllm.generate(body)
        if model_type in ROUGH:
            same = vllm.generate(desk.with_urls(body, [desk.data_uri(picture) for picture in pictures]))
            assert answer.tokens == same.tokens
            expected = same.logprobs
        else:
            (expected,) = trainer.logprobs(0, [(body, answer.tokens)])
        tolerance = LOOSER.get(model_type, TOLERANCE)
        np.testing.assert_allclose(answer.logprobs, expected, atol=tolerance, rtol=0)
        return answer

    return judged


@pytest.mark.parametrize("shown", SHOWN)
def test_logprobs_are_those_of_the_pictures(desk: Desk, judge: Judge, shown: str) -> None:
    pictures = [desk.picture(seed) for seed in SHOWN[shown]]
    answer = judge(desk.request(pictures, seed=len(shown)), pictures)
    assert answer.body["receipt"] == dict.fromkeys(("referenced", "verified", "decoded", "consumed"), len(pictures))


def test_a_second_turn_goes_on(desk: Desk, judge: Judge) -> None:
    """vLLM has its first picture already, the second is new."""
    pictures = [desk.picture(6), desk.picture(8)]
    first = desk.request(pictures[:1], seed=1)
    said = judge(first, pictures[:1]).tokens
    judge(desk.after(first, said, desk.request(pictures[1:], seed=2)), pictures)


def test_the_model_sees(model_type: str, vllm: Server, desk: Desk) -> None:
    """Pictures of one size, so that only the pixels differ: else equal logprobs would show nothing."""
    one, other = (vllm.generate(desk.request([desk.picture(seed)])) for seed in (10, 15))
    assert np.abs(one.logprobs[0] - other.logprobs[0]) > 10 * LOOSER.get(model_type, TOLERANCE)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_refused_and_the_server_goes_on(vllm: Server, desk: Desk, forgery: str) -> None:
    change, status, *_ = FORGED[forgery]
    before = vllm.processes()
    body = desk.request([desk.picture(3), desk.picture(1)])
    change(body)
    answer = vllm.generate(body)
    assert (answer.status, answer.error["code"]) == (status, 400)
    assert vllm.generate(desk.request([desk.picture(1)])).status == 200
    assert vllm.processes() == before
