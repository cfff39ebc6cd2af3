"""The trainer on a pretended GPU: everything stands where it has to, and the numbers are the host's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch

from filmroll.engine.weights import read_weights
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model
from filmroll.store import Store, open_store
from filmroll.train.learning.forward import forward
from filmroll.train.learning.objective import LossConfig
from filmroll.train.learning.reference import Reference
from filmroll.train.learning.trainer import Trainer
from filmroll.train.process.team import Team
from filmroll.train.step import Dtype, Progress
from tests.pretended_gpu import pretended_gpu
from tests.train.album import lose
from tests.train.every_case import CASES, SHOWN, Ground, gradients
from tests.train.together import CONFIG, work


def learnt(
    ground: Ground, model: Any, rows: Any, dtype: Dtype = "float32"
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logprobs of the trained tokens and the gradients of their mean, as they are on the host."""
    out = forward(model, ground.family, ground.batch(model, rows), dtype=dtype)
    assert out.receipt.consumed == sum(map(len, SHOWN))
    out.logprobs.mean().backward()
    found = gradients(model)
    assert {one.device.type for one in (out.logprobs, *found.values())} == {model.device.type}
    return out.logprobs.detach().cpu(), {name: value.cpu() for name, value in found.items()}


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_model_type_learns_what_it_learns_on_the_host(case: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ground = Ground.of(case, tmp_path)
    for rows in (ground.rows, [[one] for one in ground.samples]) if case == "tiny" else (ground.rows,):
        logprobs, expected = learnt(ground, load_model(ground.folder), rows)
        with pretended_gpu():
            there, found = learnt(ground, load_model(ground.folder, device="cuda"), rows)
        torch.testing.assert_close(there, logprobs, rtol=0, atol=1e-5)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_model_type_learns_it_in_bfloat16(case: str, tmp_path: Path) -> None:
    """As a trainer does, by autocast, and with weights of that kind, as an engine may have them."""
    torch.set_num_threads(1)
    ground = Ground.of(case, tmp_path)
    logprobs, expected = learnt(ground, load_model(ground.folder), ground.rows)
    with pretended_gpu():
        multiplied = learnt(ground, load_model(ground.folder, device="cuda"), ground.rows, "bfloat16")
        kept = learnt(ground, load_model(ground.folder, device="cuda", dtype="bfloat16"), ground.rows)
    for there, found in (multiplied, kept):
        torch.testing.assert_close(there, logprobs, rtol=0, atol=0.05)
        assert not torch.equal(there, logprobs)
        assert found.keys() == expected.keys()
    assert {value.dtype for value in multiplied[1].values()} == {torch.float32}


DRESSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"gradient_checkpointing": True},
    "piecewise": {"logits_at_once": 5},
    "frozen": {"freeze_vision": True},
    "adapters": {"lora_rank": 4},
    "held": {"objective": {"kl": 0.1, "length": "samples", "ratio": "sequence"}},
    "truncated": {"objective": {"truncate_at": 2.0}},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(tmp_path_factory.mktemp("images"))


def team(
    model: Path, store: Store, place: Path, device: str, objective: dict[str, Any] | None = None, **dress: Any
) -> Team:
    sought = LossConfig(**objective or {})
    trainer = Trainer(
        model,
        Materializer(store, load_family(model), cache_bytes=0),
        CONFIG.model_copy(update=dress | {"device": device}),
        sought,
        may_miss=0.5,
        reference=Reference(model, device=device) if sought.kl else None,
    )
    return Team(trainer, weights=place / "weights", checkpoints=place / "checkpoints", keep=2, shard_bytes=1 << 20)


def steps(learner: Team, store: Store, *numbers: int, kl: float = 0.0) -> list[dict[str, Any]]:
    """What is reported of these steps, but for times."""
    reports = [learner.step(work(store, learner._trainer.family, number, kl=kl)) for number in numbers]
    return [msgspec.to_builtins(msgspec.structs.replace(one, seconds=0, image_wait=0)) for one in reports]


def parameters(learner: Team) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in learner._trainer.model.named_parameters()}


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            same = pytest.approx(other[name], rel=tolerance, abs=tolerance) if isinstance(value, float) else other[name]
            assert value == same, name


@pytest.mark.parametrize("dress", DRESSES)
def test_steps_are_those_of_the_host(dress: str, tiny_model: Path, store: Store, tmp_path: Path) -> None:
    kl = DRESSES[dress].get("objective", {}).get("kl", 0.0)
    host = team(tiny_model, store, tmp_path / "host", "cpu", **DRESSES[dress])
    expected = steps(host, store, 1, 2, kl=kl)
    assert expected[0]["loss"] != expected[1]["loss"]
    with pretended_gpu():
        there = team(tiny_model, store, tmp_path / "there", "cuda", **DRESSES[dress])
        found = steps(there, store, 1, 2, kl=kl)
        learnt = parameters(there)
    assert_close(found, expected)
    for name, value in parameters(host).items():
        torch.testing.assert_close(learnt[name], value, rtol=0, atol=1e-4, msg=name)


def test_in_bfloat16_the_model_multiplies_in_it(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    (expected,) = steps(team(tiny_model, store, tmp_path, "cpu"), store, 1)
    with pretended_gpu():
        there = team(tiny_model, store, tmp_path, "cuda", dtype="bfloat16")
        made = []
        for part in ("lm_head", "model.visual.blocks.0.attn.qkv"):
            layer = there._trainer.model.get_submodule(part)
            layer.register_forward_hook(lambda _module, _args, output: made.append(output.dtype))
        (found,) = steps(there, store, 1)
        kinds = {value.dtype for value in there._trainer.model.parameters()}
    assert set(made) == {torch.bfloat16}
    assert kinds == {torch.float32}
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-2)
    assert found["loss"] != expected["loss"]


def test_an_image_that_is_gone_weighs_nothing(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    host = team(tiny_model, store, tmp_path, "cpu")
    step = work(store, host._trainer.family, 77)
    gone = step.micro_batches[0].images[0].descriptor
    lose(gone)
    expected = host.step(step)
    assert expected.samples_masked > 0
    with pretended_gpu():
        found = team(tiny_model, store, tmp_path, "cuda").step(step)
    assert (found.samples_masked, found.missing, found.receipt) == (
        expected.samples_masked,
        expected.missing,
        expected.receipt,
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)


def test_a_checkpoint_goes_back_to_it(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    """Numbers, moments and the device's random state; a resumed trainer goes on as the one before."""
    with pretended_gpu():
        learner = team(tiny_model, store, tmp_path, "cuda")
        steps(learner, store, 1)
        learner.save(Progress(0, 1))
        state = torch.cuda.get_rng_state()
        expected = steps(learner, store, 2)
    with pretended_gpu() as gpu:
        gpu.random = torch.Generator().manual_seed(5).get_state()
        resumed = team(tiny_model, store, tmp_path, "cuda")
        assert resumed.restore() == Progress(0, 1)
        assert torch.equal(torch.cuda.get_rng_state(), state)
        moments = [value for one in resumed._trainer.optimizer.state.values() for value in one.values() if value.ndim]
        assert {value.device.type for value in moments} == {"cuda"}
        assert_close(steps(resumed, store, 2), expected, tolerance=0)
    # And where there is none.
    host = team(tiny_model, store, tmp_path, "cpu")
    assert host.restore() == Progress(0, 1)
    assert_close(steps(host, store, 2), expected)


def test_a_checkpoint_waits_for_the_gpu_that_the_model_is_on(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    """Of several, the first is the present one in every new thread."""
    with pretended_gpu(), mock.patch.object(torch.cuda, "device", wraps=torch.cuda.device) as present:
        learner = team(tiny_model, store, tmp_path, "cuda")
        learner.save(Progress(0, 1))
        present.assert_called_once_with(learner._trainer.model.device)


def test_a_trainer_on_the_host_leaves_a_gpu_asleep(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    with pretended_gpu(), mock.patch.object(torch.cuda, "get_rng_state", side_effect=AssertionError("it was woken")):
        learner = team(tiny_model, store, tmp_path, "cpu")
        learner.save(Progress(0, 1))
        learner.restore()


@pytest.mark.parametrize("dress", ["plain", "adapters"])
def test_the_weights_for_engines_are_those_of_the_host(
    dress: str, tiny_model: Path, store: Store, tmp_path: Path
) -> None:
    learner = team(tiny_model, store, tmp_path / "host", "cpu", **DRESSES[dress])
    learner.publish(0)
    with pretended_gpu():
        team(tiny_model, store, tmp_path / "there", "cuda", **DRESSES[dress]).publish(0)
    shapes = {name: tuple(value.shape) for name, value in load_model(tiny_model).state_dict().items()}
    expected, found = (read_weights(tmp_path / place / "weights", 0, shapes) for place in ("host", "there"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


WAITS = {"plain": 22, "held": 40}
"""For how much the host waits in a micro-batch with pictures: all of it inside of a tiny Qwen3-VL and its gradients."""


@pytest.mark.parametrize("dress", WAITS)
def test_the_host_waits_for_figures_once_a_step(dress: str, tiny_model: Path, store: Store, tmp_path: Path) -> None:
    """Three times, however many micro-batches there are: losses, what is told of tokens, the gradients' norm.

    Inside of models transformers looks at masks and grids; of that only what it costs a micro-batch is held.
    """
    kl = DRESSES[dress].get("objective", {}).get("kl", 0.0)
    seen = {}
    with pretended_gpu() as gpu:
        learner = team(tiny_model, store, tmp_path, "cuda", **DRESSES[dress])
        # The first of a step loads what is loaded once.
        steps(learner, store, 3, kl=kl)
        for count in (2, 14):
            step = work(store, learner._trainer.family, 4, count=count, kl=kl)
            before = len(gpu.waits)
            learner.step(step)
            seen[len(step.micro_batches)] = gpu.waits[before:]
    (few, first), (many, last) = seen.items()
    assert few < many
    of_models = ("forward.py", "feed.py")
    for waits in (first, last):
        ours = [one for one in waits if one.partition(" at ")[2].partition(":")[0] not in of_models]
        # Under the trainer's line are gradients of what transformers picks by masks, too, and what it computes again.
        ours = [one for one in ours if " at trainer.py" not in one or "_local_scalar_dense" in one]
        assert len(ours) == 3, ours
    assert len(last) - len(first) <= (many - few) * WAITS[dress], Counter(last)


def test_convolutions_read_all_of_float32(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pretended_gpu():
        load_model(tiny_model, device="cuda")
        assert not torch.backends.cudnn.allow_tf32
