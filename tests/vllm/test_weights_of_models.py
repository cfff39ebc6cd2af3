"""New weights for models whose embeddings are tied, or whose tensors have other names in their checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from filmroll.engine.weights import FILE, version_folder, write_weights
from filmroll.families.tiny import build_tiny_model
from filmroll.store import open_store
from tests.vllm.breaking import PATH as BREAK
from tests.vllm.conftest import desk_of
from tests.vllm.conversations import Desk
from tests.vllm.serving import Server, serving
from tests.vllm.test_agreement import TOLERANCE
from tests.vllm.test_weights import FLAGS, INFO, UPDATE, assert_predicted, update, wait_for
from tests.vllm.tiny_models import case
from tests.vllm.trainer import Trainer

pytestmark = pytest.mark.vllm


def tied(build: Callable[[Path], object]) -> Callable[[Path], object]:
    """The same with one tensor for what tokens mean and how they are chosen."""

    def build_tied(folder: Path) -> None:
        build(folder)
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / FILE)
        del tensors["lm_head.weight"]
        save_file(tensors, folder / FILE, {"format": "pt"})

    return build_tied


MODELS = {
    "tied Qwen3-VL": tied(build_tiny_model),
    "Qwen2.5-VL": case("qwen2_5_vl-class_default"),
    "tied Qwen2.5-VL": tied(case("qwen2_5_vl-class_default")),
}


@pytest.fixture(scope="module", params=MODELS)
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("model")
    MODELS[request.param](folder / "model")
    return desk_of(folder / "model", folder, open_store(folder / "images"))


@pytest.fixture(scope="module")
def trainer(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(desk, tmp_path_factory.mktemp("weights"))
    for version in (0, 1, 2):
        trainer.write(version)
    return trainer


@pytest.fixture(scope="module")
def vllm(desk: Desk, trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    told = {"store": str(desk.store_dir), "weights": str(trainer.folder)}
    with serving(desk.model, desk.outside, log, told, FLAGS) as server:
        yield server


def test_what_fails_while_it_is_loaded_is_undone(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    """First of all, when the server has loaded nothing but its checkpoint, and then from a version."""
    body = desk.request([desk.picture(350)])
    first = vllm.generate(body)
    for before in (0, 2):
        if before:
            update(vllm, before)
        assert vllm.post(BREAK, {"times": 1}).status == 200
        assert vllm.post(UPDATE, {"version": 1}).status == 502
        answer = vllm.generate(body)
        assert_predicted(trainer, [(body, answer)], before)
        assert before or (answer.tokens, answer.logprobs) == (first.tokens, first.logprobs)


def test_answers_follow_the_weights_as_the_trainer_predicts_and_return_exactly(
    vllm: Server, desk: Desk, trainer: Trainer
) -> None:
    update(vllm, 0)
    bodies = [desk.request([desk.picture(300 + one) for one in range(number)], seed=number) for number in (1, 2, 3)]
    before = [vllm.generate(body) for body in bodies]
    for body, answer in zip(bodies, before, strict=True):
        assert_predicted(trainer, [(body, answer)], 0)
    for version in (1, 2):
        update(vllm, version)
        for body, old in zip(bodies, before, strict=True):
            answer = vllm.generate(body)
            assert_predicted(trainer, [(body, answer)], version)
            assert max(np.abs(np.subtract(answer.logprobs, old.logprobs))) > 100 * TOLERANCE
    update(vllm, 0)
    for body, old in zip(bodies, before, strict=True):
        again = vllm.generate(body)
        assert (again.tokens, again.logprobs) == (old.tokens, old.logprobs)


def test_what_is_one_tensor_in_vllm_is_not_taken_as_two(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    update(vllm, 0)
    tensors = {name: value.clone() for name, value in trainer.tensors(1).items()}
    write_weights(tensors, trainer.folder, 30)
    update(vllm, 30)
    body = desk.request([desk.picture(351)])
    assert_predicted(trainer, [(body, vllm.generate(body))], 1)
    tensors["lm_head.weight"] += 1
    write_weights(tensors, trainer.folder, 31)
    taken = vllm.post(UPDATE, {"version": 31})
    if trainer.model(0).config.tie_word_embeddings:
        assert (taken.status, taken.error["type"], taken.error["param"]) == (400, "weights", "version")
        assert "one tensor" in taken.error["message"]
        assert vllm.get(INFO).body == {"version": 30}
    else:
        assert (taken.status, vllm.get(INFO).body) == (200, {"version": 31})


def test_a_server_that_is_left_without_any_version_ends(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    """Both vanish after the one was checked, while the update waits for a request under way; the last test."""
    update(vllm, 2)
    early = desk.request([desk.picture(352)], max_tokens=600, ignore_eos=True)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(vllm.generate, early)
        wait_for(lambda: vllm.metric("vllm:num_requests_running") == 1)
        updated = pool.submit(vllm.post, UPDATE, {"version": 1})
        wait_for(lambda: vllm.log.read_text().rfind("PAUSED_NEW") > vllm.log.read_text().rfind("UNPAUSED"))
        late = pool.submit(vllm.generate, desk.request([desk.picture(353)]))
        for version in (1, 2):
            shutil.rmtree(version_folder(trainer.folder, version))
        assert not first.done(), "too fast to show anything"
        assert first.result().status == 200
        failed = updated.result()
        assert (failed.status, failed.error["type"]) == (503, "engine_unavailable")
        # It is not their patience that ends it.
        with suppress(httpx.NetworkError, httpx.ProtocolError):
            ended = late.result()
            assert ended.status != 200 or not ended.tokens
    wait_for(lambda: not vllm.answers())
