"""Records: a trajectory is rebuilt from its JSON line alone, and what is no record is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from filmroll.errors import RunError
from filmroll.render.tokenizer import TextTokenizer
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.run.record import IMAGE, read_record, rollout_record
from filmroll.wire.packed import pack
from tests.rollout.graphs import PAD, Conversations
from tests.store.effort import effort
from tests.train.conftest import descriptor

IMAGES = [descriptor(number, number + 1) for number in range(3)]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    return TextTokenizer.load(tiny_model)


def through_json(trajectory: Trajectory, tokenizer: TextTokenizer) -> Trajectory:
    line = json.dumps(rollout_record(trajectory, 3, tokenizer))
    return read_record(json.loads(line)).trajectory()


class Recorded(Conversations):
    tokenizer: TextTokenizer

    def finished(self, trajectory: Trajectory) -> None:
        """Tokens, masks, logprobs, versions, images, rewards: all that travels in a trajectory."""
        assert pack(through_json(trajectory, self.tokenizer)) == pack(trajectory)


@pytest.mark.reliability
@pytest.mark.timeout(0)
def test_a_record_is_the_whole_trajectory(tokenizer: TextTokenizer) -> None:
    machine = type(
        "Machine", (Recorded,), {"tokenizer": tokenizer, "__init__": lambda self: Recorded.__init__(self, IMAGES)}
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=effort(60, 20_000),
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_float32_survives(tokenizer: TextTokenizer) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32).view(np.float32)
    odd = np.array([-0.0, 1e-45, -3.4028235e38, 1.1754942e-38], np.float32)
    values = np.concatenate([bits[np.isfinite(bits)], odd])
    made = Trajectory("t", PAD)
    made.add_sampled(ROOT, [1] * len(values), values, temperature=0.1 + 0.2, version=7, finish_reason="length")
    (back,) = through_json(made, tokenizer).nodes
    assert back.logprobs is not None
    assert back.logprobs.tobytes() == values.tobytes()
    assert back.temperature == 0.1 + 0.2


def two_turns() -> Trajectory:
    made = Trajectory("rl_0/prompt_1/rollout_2", PAD, reward=0.5, metrics={"partial": math.nan}, expected="A")
    node = made.add_prompt(ROOT, [65, PAD, 66, PAD, PAD], [IMAGES[2], IMAGES[1], IMAGES[2]])
    made.add_sampled(node, [67, 68], [-0.1, -0.2], temperature=1.0, version=4, finish_reason="stop")
    return made


def test_people_and_tools_find_what_they_look_for(tokenizer: TextTokenizer) -> None:
    row = rollout_record(two_turns(), 3, tokenizer)
    shown, said = row["turns"]
    assert (row["name"], row["step"], row["reward"]) == ("rl_0/prompt_1/rollout_2", 3, 0.5)
    assert shown["text"] == tokenizer.decode(65) + IMAGE + tokenizer.decode(66) + IMAGE * 2
    assert shown["images"] == [{"image": 0, "offset": 1}, {"image": 1, "offset": 5}, {"image": 0, "offset": 7}]
    assert (shown["role"], shown["tokens"], shown["parent"]) == ("prompt", 10, -1)
    assert [image["tokens"] for image in row["images"]] == [3, 2]
    assert row["images"][0]["uri"] == IMAGES[2].image.uri
    assert "logprobs" not in shown
    assert (said["role"], said["version"], said["token_texts"]) == (
        "answer",
        4,
        [tokenizer.decode(67), tokenizer.decode(68)],
    )
    assert said["logprobs"] == [-0.1, -0.2]


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def apply(row: Any) -> None:
        for key in path[:-1]:
            row = row[key]
        row[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change("format", to="filmroll-rollout-2"), "format"),
        (change("turns", 0, "token_ids", 1, to=70), "2 pads for 3 images"),
        (change("turns", 0, "token_ids", 0, to=2**31), "token_ids"),
        (change("turns", 0, "token_ids", 0, to="1"), "token_ids"),
        (change("turns", 0, "images", 0, "image", to=9), "the table has 2"),
        (change("turns", 0, "images", 0, "image", to=1), "turn 0 has 9 expanded tokens"),
        (change("turns", 0, "images", 1, "offset", to=4), "turn 0"),
        (change("turns", 0, "tokens", to=4), "turn 0"),
        (change("turns", 0, "parent", to=1), "no root"),
        (change("turns", 1, "parent", to=5), "its parent is 5"),
        (change("turns", 1, "logprobs", to=[-0.1]), "2 tokens were sampled with 1 logprobs"),
        (change("turns", 1, "role", to="oracle"), "role"),
        (change("turns", 1, "version", to=2**40), "version"),
        (change("images", 0, "sha256", to="../../etc/passwd"), "sha256"),
        (change("images", 0, to={}), "image"),
        (change("images", to=None), "images"),
    ],
)
def test_a_record_that_cannot_be_trusted_is_refused(tokenizer: TextTokenizer, damage: Any, said: str) -> None:
    row = copy.deepcopy(rollout_record(two_turns(), 3, tokenizer))
    damage(row)
    with pytest.raises(RunError, match=said):
        read_record(row)


@pytest.mark.parametrize("row", [None, [], {}, 3, "x", {"turns": []}])
def test_what_is_no_record_at_all_is_refused(row: object) -> None:
    with pytest.raises(RunError, match="no rollout"):
        read_record(row)


def conversation(turns: int) -> Trajectory:
    """A rollout of an agent that looks at a page a turn: ids as long as those of Qwen3-VL, 48 tokens an answer."""
    draw = np.random.default_rng(turns)
    pad = 151_655

    def words(count: int) -> list[int]:
        return draw.integers(20_000, 150_000, count).tolist()

    made = Trajectory(f"rl_12/prompt_3/rollout_{turns}", pad)
    node = made.add_prompt(ROOT, words(300), [])
    for turn in range(turns):
        page = descriptor(turn, 1024)
        page = msgspec.structs.replace(page, payload={"image_grid_thw": [[1, 64, 64]]})
        node = made.add_prompt(node, [*words(10), pad, *words(20)], [page])
        logprobs = -draw.exponential(0.5, 48)
        node = made.add_sampled(node, words(48), logprobs, temperature=1.0, version=12, finish_reason="stop")
    return made


class SpelledOut(TextTokenizer):
    """Every token is four letters, about what tokens of English text have."""

    def __init__(self) -> None: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        return "word" if isinstance(token_ids, int) else "word" * len(token_ids)


@pytest.mark.parametrize("weigh", [pack, lambda made: json.dumps(rollout_record(made, 12, SpelledOut())).encode()])
def test_law_linear(weigh: Callable[[Trajectory], bytes]) -> None:
    """Eight turns with an image of 1024x1024 each weigh under 40 KB, a hundred turns under twelve times that."""
    eight, hundred = (len(weigh(conversation(turns))) for turns in (8, 100))
    assert eight < 40_000
    assert hundred < 12 * eight
