"""A vLLM that serves takes new weights: its answers follow them, and name them, and nothing gets lost or mixed.

Two workers share its layers, as on two GPUs. A single one takes weights in `test_weights_of_models` and `test_run`.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from filmroll.engine.weights import FILE, MANIFEST, version_folder, write_weights
from filmroll.wire.capabilities import ROUTE, read_capabilities
from tests.vllm.breaking import PATH as BREAK
from tests.vllm.breaking import WORKER
from tests.vllm.conversations import Body, Desk
from tests.vllm.serving import Answer, Server, serving
from tests.vllm.test_agreement import TOLERANCE, assert_same
from tests.vllm.trainer import Trainer

pytestmark = pytest.mark.vllm
UPDATE, INFO = "/inference/v1/update_weights", "/inference/v1/weight_info"
FLAGS = (
    *("--weight-transfer-config", '{"backend": "filmroll"}'),
    *("--middleware", "tests.vllm.breaking.breaking"),
)
WORKERS = ("--tensor-parallel-size", "2", "--worker-extension-cls", "tests.vllm.breaking.Breakable")
PROCESSORS = sorted(os.sched_getaffinity(0))
BOUND = {"VLLM_CPU_OMP_THREADS_BIND": f"{PROCESSORS[0]}|{PROCESSORS[-1]}"}
"""Which processor each worker has; by itself vLLM would want two of the kind that have memory of their own."""
VERSIONS = (1, 2, 3, 5)


@pytest.fixture(scope="module")
def trainer(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(desk, tmp_path_factory.mktemp("weights"))
    for version in (0, *VERSIONS):
        trainer.write(version)
    return trainer


@pytest.fixture(scope="module")
def started(desk: Desk, trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    told = {"store": str(desk.store_dir), "cache_bytes": 0, "weights": str(trainer.folder)}
    with serving(desk.model, desk.outside, log, told, (*FLAGS, *WORKERS), BOUND) as server:
        assert server.get(INFO).body == {"version": 0}
        yield server


@pytest.fixture
def vllm(started: Server) -> Server:
    """With the checkpoint's own weights."""
    update(started, 0)
    return started


def update(server: Server, version: int) -> None:
    answer = server.post(UPDATE, {"version": version})
    assert (answer.status, answer.body) == (200, {"version": version})


def version_of(answer: Answer) -> int:
    """The one version that sampled all of it."""
    (span,) = answer.body["choices"][0]["weight_versions"]
    assert (span["start"], span["end"]) == (0, len(answer.tokens))
    return int(span["version"])


def assert_of(trainer: Trainer, answer: Answer, body: Body, version: int) -> None:
    assert version_of(answer) == version
    assert_predicted(trainer, [(body, answer)], version)


def assert_predicted(trainer: Trainer, asked: Sequence[tuple[Body, Answer]], weights: int) -> None:
    predicted = trainer.logprobs(weights, [(body, answer.tokens) for body, answer in asked])
    for (_, answer), logprobs in zip(asked, predicted, strict=True):
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=TOLERANCE, rtol=0)


def pauses(server: Server) -> int:
    return server.log.read_text().count("setting pause state to PAUSED")


@pytest.mark.parametrize("before", [None, 0, 2])
def test_what_fails_while_it_is_loaded_is_undone(
    started: Server, desk: Desk, trainer: Trainer, before: int | None
) -> None:
    """First of all, when the server has loaded nothing but its checkpoint."""
    if before is not None:
        update(started, before)
    body = desk.request([desk.picture(350)])
    processes = started.processes()
    assert started.post(BREAK, {"times": 1}).status == 200
    failed = started.post(UPDATE, {"version": 1})
    assert (failed.status, failed.error["type"], failed.error["param"]) == (502, "engine", "version")
    assert "memory" not in failed.error["message"]
    assert started.get(INFO).body == {"version": before or 0}
    assert_of(trainer, started.generate(body), body, before or 0)
    update(started, 1)
    assert_of(trainer, started.generate(body), body, 1)
    assert started.processes() == processes


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_worker_fails_neither_has_the_new_weights(
    vllm: Server, desk: Desk, trainer: Trainer, rank: int
) -> None:
    update(vllm, 2)
    body, processes = desk.request([desk.picture(352)]), vllm.processes()
    assert sorted(vllm.post(WORKER, {"rank": rank}).body["broken"]) == [False, True]
    failed = vllm.post(UPDATE, {"version": 1})
    assert (failed.status, failed.error["type"], failed.error["param"]) == (502, "engine", "version")
    assert vllm.get(INFO).body == {"version": 2}
    assert_of(trainer, vllm.generate(body), body, 2)
    update(vllm, 1)
    assert_of(trainer, vllm.generate(body), body, 1)
    assert vllm.processes() == processes


def test_a_server_says_what_it_is_and_that_it_takes_weights(started: Server, desk: Desk) -> None:
    said = read_capabilities(httpx.get(started.url + ROUTE).content)
    assert (said.engine, said.model, said.max_model_len) == ("vllm", "tiny", 1024)
    assert said.ways == ["references", "content_parts"]
    assert (said.family, said.fingerprint) == (desk.family.name, desk.family.fingerprint)
    assert set(said.recipes) == {desk.family.recipe, desk.pillow.recipe}
    assert said.weights


def test_a_route_of_ours_says_by_which_method_it_is_asked(started: Server) -> None:
    for path, wrong, right in ((UPDATE, "GET", "POST"), (INFO, "POST", "GET"), (ROUTE, "DELETE", "GET")):
        answer = httpx.request(wrong, started.url + path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, right)
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("request", 405)
        assert wrong in error["message"]
        assert right in error["message"]


def test_answers_follow_the_weights_as_the_trainer_predicts_and_return_exactly(
    vllm: Server, desk: Desk, trainer: Trainer
) -> None:
    bodies = [
        desk.request([desk.picture(300 + one) for one in range(number)], seed=number, temperature=number % 2)
        for number in (1, 2, 3)
    ]
    before = [vllm.generate(body) for body in bodies]
    for version in VERSIONS:
        update(vllm, version)
        assert vllm.get(INFO).body == {"version": version}
        for body, old in zip(bodies, before, strict=True):
            answer = vllm.generate(body)
            assert_of(trainer, answer, body, version)
            assert max(np.abs(np.subtract(answer.logprobs, old.logprobs))) > 100 * TOLERANCE
    update(vllm, 0)
    for body, old in zip(bodies, before, strict=True):
        again = vllm.generate(body)
        assert_of(trainer, again, body, 0)
        if body["sampling_params"]["temperature"] == 0:
            assert (again.tokens, again.logprobs) == (old.tokens, old.logprobs)


def test_images_that_were_cached_before_an_update_serve_after_it(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    pictures = [desk.picture(310), desk.picture(311)]
    body = desk.request(pictures)
    vllm.generate(body)
    hits = vllm.metric("vllm:mm_cache_hits_total")
    for version in (1, 2):
        update(vllm, version)
        with desk.hidden(pictures[0]):
            # Nothing there to be decoded: pixels stay in vLLM's caches, and what was computed of them does not.
            answer = vllm.generate(body)
        assert_of(trainer, answer, body, version)
    assert vllm.metric("vllm:mm_cache_hits_total") > hits


def test_under_load_every_answer_is_wholly_of_the_version_it_names(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    """16 requests at a time, each with images that others have as well, while versions come and go."""
    done = threading.Event()
    asked: list[tuple[Body, Answer]] = []

    def client(number: int) -> None:
        turn = 0
        while not done.is_set():
            pictures = [desk.picture(320 + (number + one) % 8) for one in range(1 + number % 3)]
            body = desk.request(
                pictures, seed=100 * number + turn, temperature=1, max_tokens=8 + number, ignore_eos=True
            )
            asked.append((body, vllm.generate(body)))
            turn += 1

    processes = vllm.processes()
    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, number) for number in range(16)]
        try:
            for version in (1, 2, 3, 1, 0):
                while len(asked) < 16:
                    done.wait(0.05)
                update(vllm, version)
                done.wait(0.3)
        finally:
            done.set()
        for one in clients:
            one.result()
    assert {version_of(answer) for _, answer in asked} == {0, 1, 2, 3}
    for version in range(4):
        assert_predicted(trainer, [one for one in asked if version_of(one[1]) == version], version)
    assert all(len(answer.tokens) == body["sampling_params"]["max_tokens"] for body, answer in asked)
    assert vllm.processes() == processes


def test_a_request_under_way_ends_on_its_weights_and_a_later_one_has_the_new(
    vllm: Server, desk: Desk, trainer: Trainer
) -> None:
    early = desk.request([desk.picture(330)], max_tokens=600, temperature=1, ignore_eos=True)
    late = desk.request([desk.picture(331)])
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(vllm.generate, early)
        wait_for(lambda: vllm.metric("vllm:num_requests_running") == 1)
        updated = pool.submit(update, vllm, 1)
        wait_for(lambda: vllm.log.read_text().rfind("PAUSED_NEW") > vllm.log.read_text().rfind("UNPAUSED"))
        second = pool.submit(vllm.generate, late)
        assert not first.done(), "too fast to show anything"
        updated.result()
        assert_of(trainer, first.result(), early, 0)
        assert_of(trainer, second.result(), late, 1)


def test_an_update_goes_on_when_nobody_waits_for_it_any_more(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    early = desk.request([], max_tokens=600, ignore_eos=True)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(vllm.generate, early)
        wait_for(lambda: vllm.metric("vllm:num_requests_running") == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(vllm.url + UPDATE, json={"version": 2}, timeout=0.2)
        assert not first.done(), "too fast to show anything"
        assert version_of(first.result()) == 0
    wait_for(lambda: vllm.get(INFO).body == {"version": 2})
    body = desk.request([desk.picture(332)])
    assert_of(trainer, vllm.generate(body), body, 2)


def test_updates_at_the_same_time_come_one_after_the_other(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda version: update(vllm, version), (1, 2, 3, 0, 1, 2, 3, 1)))
    body = desk.request([desk.picture(333)])
    assert_of(trainer, vllm.generate(body), body, vllm.get(INFO).body["version"])


def test_a_version_that_is_there_costs_nothing_and_one_written_again_is_taken(
    vllm: Server, desk: Desk, trainer: Trainer
) -> None:
    body = desk.request([desk.picture(334)])
    trainer.write(9, like=1)
    update(vllm, 9)
    before = pauses(vllm)
    update(vllm, 9)
    assert pauses(vllm) == before
    trainer.write(9, like=2)
    update(vllm, 9)
    answer = vllm.generate(body)
    assert version_of(answer) == 9
    assert_predicted(trainer, [(body, answer)], 2)


NAME = "model.language_model.layers.0.self_attn.q_proj.weight"
Spoil = Callable[[Trainer, Path], None]


def cut_short(trainer: Trainer, place: Path) -> None:
    with (place / FILE).open("r+b") as file:
        file.truncate((place / FILE).stat().st_size // 2)


def one_bit(trainer: Trainer, place: Path) -> None:
    content = bytearray((place / FILE).read_bytes())
    content[-5] ^= 1
    (place / FILE).write_bytes(content)


def other_file(trainer: Trainer, place: Path) -> None:
    save_file({"other": torch.ones(2)}, place / FILE)


def without_manifest(trainer: Trainer, place: Path) -> None:
    (place / MANIFEST).unlink()


def wrong_shape(trainer: Trainer, place: Path) -> None:
    good = trainer.tensors(1)
    write_weights(good | {NAME: good[NAME].T[:, :5]}, place.parent, 20)


def missing_tensor(trainer: Trainer, place: Path) -> None:
    write_weights({name: value for name, value in trainer.tensors(1).items() if name != NAME}, place.parent, 20)


def another_architecture(trainer: Trainer, place: Path) -> None:
    tensors = {name.replace("language_model", "text_model"): value for name, value in trainer.tensors(1).items()}
    write_weights(tensors, place.parent, 20)


def missing(trainer: Trainer, place: Path) -> None:
    shutil.rmtree(place)


def anothers_number(trainer: Trainer, place: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(version_folder(trainer.folder, 1), place)


SPOILT: list[tuple[Spoil, str]] = [
    (missing, "no weights of version 20"),
    (without_manifest, "no weights of version 20"),
    (cut_short, "hash"),
    (one_bit, "hash"),
    (other_file, "hash"),
    (wrong_shape, "shape"),
    (missing_tensor, "lack"),
    (another_architecture, "lack"),
    (anothers_number, "says version 1"),
]


@pytest.mark.parametrize(("spoil", "problem"), SPOILT, ids=lambda one: getattr(one, "__name__", ""))
def test_a_version_that_is_not_whole_is_refused_and_changes_nothing(
    vllm: Server, desk: Desk, trainer: Trainer, spoil: Spoil, problem: str
) -> None:
    body = desk.request([desk.picture(340)])
    before, processes, paused = vllm.generate(body), vllm.processes(), pauses(vllm)
    spoil(trainer, trainer.write(20, like=1))
    refused = vllm.post(UPDATE, {"version": 20})
    assert (refused.status, refused.error["type"], refused.error["param"]) == (400, "weights", "version")
    assert re.search(problem, refused.error["message"])
    assert str(trainer.folder) not in refused.error["message"]
    assert (vllm.get(INFO).body, vllm.processes(), pauses(vllm)) == ({"version": 0}, processes, paused)
    assert_same(vllm.generate(body), before)


@pytest.mark.parametrize(
    "asked",
    ["../../1", "/etc/passwd", "1", -1, 1.5, True, None, 2**60, [1], {"$": 1}],
)
def test_a_version_that_is_no_number_is_refused(vllm: Server, asked: Any) -> None:
    refused = vllm.post(UPDATE, {"version": asked})
    assert (refused.status, refused.error["type"], refused.error["param"]) == (400, "request", "version")
    assert vllm.get(INFO).body == {"version": 0}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b"{}"])
def test_an_update_that_is_no_update_is_refused(vllm: Server, content: bytes) -> None:
    refused = httpx.post(vllm.url + UPDATE, content=content)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "version")


def test_many_updates_need_no_more_memory_than_a_few(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    body = desk.request([desk.picture(360)])

    def memory_after(rounds: int) -> int:
        for number in range(rounds):
            update(vllm, VERSIONS[number % 3])
            assert vllm.generate(body).status == 200
        # Not what is mapped from files, as versions are.
        return sum(psutil.Process(pid).memory_full_info().uss for pid in vllm.processes())

    size = (version_folder(trainer.folder, 1) / FILE).stat().st_size
    before = memory_after(10)
    assert memory_after(20) - before < 5 * size


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(1200):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not come true within a minute")
