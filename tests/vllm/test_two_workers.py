"""A vLLM whose layers two workers share, as on two GPUs: the same answers, and updates of both or of neither."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vllm.breaking import WORKER
from tests.vllm.conversations import Desk
from tests.vllm.serving import Server, serving
from tests.vllm.test_weights import FLAGS, INFO, UPDATE, assert_of, update
from tests.vllm.trainer import Trainer

pytestmark = pytest.mark.vllm
WORKERS = (
    *("--tensor-parallel-size", "2"),
    *("--worker-extension-cls", "tests.vllm.breaking.Breakable"),
)
BOUND = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""Which processor each worker has; by itself vLLM would want two of the kind that have memory of their own."""


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
    with serving(desk.model, desk.outside, log, told, (*FLAGS, *WORKERS), BOUND) as server:
        yield server


def test_two_workers_answer_and_take_weights_as_one_does(vllm: Server, desk: Desk, trainer: Trainer) -> None:
    """By the trainer's forward of the whole model, before an update, after some, and back at the checkpoint."""
    bodies = [desk.request([desk.picture(700 + one) for one in range(number)]) for number in (1, 3)]
    for version in (None, 1, 2, 0):
        if version is not None:
            update(vllm, version)
        for body, answer in zip(bodies, vllm.together(bodies), strict=True):
            assert_of(trainer, answer, body, version or 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_of_them_fails_neither_has_the_new_weights(
    vllm: Server, desk: Desk, trainer: Trainer, rank: int
) -> None:
    update(vllm, 2)
    body, processes = desk.request([desk.picture(710)]), vllm.processes()
    assert sorted(vllm.post(WORKER, {"rank": rank}).body["broken"]) == [False, True]
    failed = vllm.post(UPDATE, {"version": 1})
    assert (failed.status, failed.error["type"], failed.error["param"]) == (502, "engine", "version")
    assert vllm.get(INFO).body == {"version": 2}
    assert_of(trainer, vllm.generate(body), body, 2)
    update(vllm, 1)
    assert_of(trainer, vllm.generate(body), body, 1)
    assert vllm.processes() == processes
