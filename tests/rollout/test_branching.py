"""Episodes that retry, compare, rewrite and cannot be extended: played by the worker against a served engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from filmroll.errors import ConfigError, PlaceholderTextError
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, suppress
from filmroll.render import Renderer, load_renderer
from filmroll.rollout import EngineClient, Environment, Episode, Retry, Rewrite, Score
from filmroll.rollout.environment import Reply
from filmroll.rollout.worker import Played, RolloutTask, Worker
from filmroll.store import open_store
from filmroll.train.batches.samples import branch_advantages, samples
from filmroll.wire.generate import SamplingParams
from filmroll.wire.packed import pack
from filmroll.wire.training import LossWeights, TrainingSample
from tests.plain import plain_inputs

SAMPLING = SamplingParams(max_tokens=4, temperature=1.0)


def shows(number: int, text: str) -> dict[str, Any]:
    picture = np.random.default_rng(number).integers(0, 256, (32, 32 + 32 * (number % 3), 3), np.uint8)
    return {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}


class Scripted(Environment, Episode):
    """Answers each reply with the next line of a script; a line is a function of the episode."""

    def __init__(self, *script: Callable[[Scripted], Reply]) -> None:
        self.script = script
        self.heard: list[str] = []

    def episode(self, seed: int) -> Scripted:
        return Scripted(*self.script)

    async def begin(self) -> Sequence[dict[str, Any]]:
        return [{"role": "system", "content": "Look well."}, shows(1, "first")]

    async def reply(self, answer: str) -> Reply:
        self.heard.append(answer)
        self.tries = 1
        return self.script[len(self.heard) - 1](self) if len(self.heard) <= len(self.script) else []

    async def rate(self, answers: Sequence[str]) -> Sequence[float]:
        """The second is the best."""
        return [0.25, 0.5, 0.25][: len(answers)]

    def score(self) -> Score:
        return Score(1.0)

    def demonstration(self) -> str:
        return "ab"


def goes_on(number: int, tries: int = 1) -> Callable[[Scripted], Reply]:
    def reply(episode: Scripted) -> Reply:
        episode.tries = tries
        return [shows(number, f"look {number}")]

    return reply


def compacts(episode: Scripted) -> Reply:
    """Drops all but the first picture and the last message."""
    return Rewrite([*episode.conversation[:2], {"role": "assistant", "content": "seen"}, episode.conversation[-1]])


def inserts(_: Scripted) -> Reply:
    """No template extends a sampled answer with another answer."""
    return [{"role": "assistant", "content": "I mean it."}, shows(4, "so?")]


@pytest.fixture
def there(tiny_model, served) -> Renderer:
    return load_renderer(tiny_model, open_store(str(served.store)))


def play(
    url: str,
    renderer: Renderer,
    environment: Environment,
    method: str = "rollout",
    sampling: SamplingParams = SAMPLING,
    **task: Any,
) -> Played:
    async def ask() -> Played:
        client = EngineClient(url, "tiny")
        try:
            asked = RolloutTask("r", 1, sampling, **task)
            return await getattr(Worker(environment, renderer, client), method)(asked)
        finally:
            await client.close()

    return asyncio.run(ask())


def trained_of(played: Played, renderer: Renderer) -> list[TrainingSample]:
    ((advantage, scored),) = branch_advantages([played.trajectory])
    return samples(played.trajectory, renderer.family, advantage=advantage, weights=LossWeights(rl=1.0), scored=scored)


def told(played: Played) -> int:
    return sum(len(node.token_ids) for node in played.trajectory.nodes if node.sampled)


def test_all_ways_to_branch_give_samples_that_a_trainer_computes_the_same_for(tiny_model, served, there):
    """Retries, tries, compaction and an answer that cannot be extended, in one episode.

    For each trained token of each branch a plain forward over that branch's sample gives the
    logprob that the engine reported: the branch is what the engine has seen, images included.
    """
    script = [goes_on(2), lambda _: Retry(reward=0.0), goes_on(3, tries=3), compacts, inserts, goes_on(5), compacts]
    played = play(served.url, there, Scripted(*script))
    trajectory = played.trajectory
    assert played.requests == len(script) + 1 + 2
    assert played.receipt.consumed == played.images_sent
    made = trained_of(played, there)
    assert sum(int(one.trained.sum()) for one in made) == told(played)
    rewards = Counter(trajectory.nodes[leaf].reward for leaf in trajectory.leaves())
    assert rewards == {0.0: 1, 0.25: 2, None: len(trajectory.leaves()) - 3}

    model = load_model(tiny_model)
    materializer = Materializer(there.store, there.family)
    for one in made:
        arrays = materializer.load([image.descriptor for image in one.images]).arrays
        with torch.no_grad():
            logits = model(**plain_inputs(there.family, [one.token_ids.tolist()], arrays)).logits
        logprobs = torch.log_softmax(suppress(logits, there.family)[0, :-1], -1)
        own = logprobs.gather(-1, torch.as_tensor(one.token_ids[1:], dtype=torch.int64)[:, None])[:, 0].numpy()
        trained = one.trained[1:].astype(bool)
        np.testing.assert_allclose(own[trained], one.logprobs[1:][trained], atol=1e-4)


def test_compaction_keeps_the_same_images_and_what_is_before_them(served, there):
    played = play(served.url, there, Scripted(goes_on(2), compacts))
    trajectory = played.trajectory
    before, after = (trajectory.branch(leaf) for leaf in trajectory.leaves())
    assert len(trajectory.images) == 2
    assert trajectory.branch_images(before) == trajectory.branch_images(after) == trajectory.images
    assert before[0] is after[0], "what both begin with is one node"
    texts = [there.tokenizer.decode(trajectory.branch_tokens(branch).tolist()) for branch in (before, after)]
    assert "seen" in texts[1]
    assert "seen" not in texts[0]


def test_what_cannot_be_extended_is_rendered_anew(served, there):
    """All that was said is there, in a branch that says it once more or shares it."""
    # Otherwise an answer may be anything, empty or the end of a character.
    letters = {there.tokenizer.encode(letter)[0]: 1000.0 for letter in "bcdfg"}
    sampling = SamplingParams(max_tokens=4, logit_bias=letters)
    played = play(served.url, there, Scripted(inserts), sampling=sampling)
    trajectory = played.trajectory
    last = trajectory.branch(len(trajectory.nodes) - 1)
    text = there.tokenizer.decode(trajectory.branch_tokens(last).tolist())
    said = there.parse(next(node for node in trajectory.nodes if node.sampled).token_ids.tolist())
    assert len(said) == 4
    assert text.index("first") < text.index(said) < text.index("I mean it.") < text.index("so?")
    assert len(trajectory.branch_images(last)) == 2
    assert last[-1].sampled


def test_the_best_of_several_answers_goes_on(served, there):
    played = play(served.url, there, Scripted(goes_on(2, tries=3), goes_on(3)))
    trajectory = played.trajectory
    tried = [index for index, node in enumerate(trajectory.nodes) if node.sampled][1:4]
    assert len({trajectory.nodes[index].parent for index in tried}) == 1
    assert [trajectory.nodes[index].reward for index in tried] == [0.25, None, 0.25]
    assert [index in trajectory.leaves() for index in tried] == [True, False, True]


def test_retries_end_with_the_turns(served, there):
    played = play(served.url, there, Scripted(*[lambda _: Retry()] * 50), max_turns=5)
    assert played.requests == 5
    assert len(played.trajectory.leaves()) == 5
    assert len({node.parent for node in played.trajectory.nodes if node.sampled}) == 1


def test_nothing_is_shown_after_the_last_answer(served, there):
    played = play(served.url, there, Scripted(*[goes_on(2)] * 9), max_turns=3)
    assert played.trajectory.nodes[-1].sampled
    assert len(played.trajectory.nodes) == 6


def test_a_demonstration_branches_as_a_rollout_does(served, there):
    played = play(served.url, there, Scripted(goes_on(2, tries=3), compacts), "demonstrate")
    assert [there.parse(node.token_ids.tolist()) for node in played.trajectory.nodes if node.sampled] == ["ab"] * 3


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (lambda: Rewrite([{"role": "user", "content": "<|image_pad|>"}]), PlaceholderTextError, "image_pad"),
        (lambda: Retry(reward=float("nan")), ConfigError, "nan"),
        (lambda: Rewrite([], reward=float("inf")), ConfigError, "inf"),
    ],
)
def test_a_reply_that_cannot_be_used_is_one_clear_error(served, there, reply, error, said):
    with pytest.raises(error, match=said):
        play(served.url, there, Scripted(lambda _: reply()))


def test_each_answer_needs_a_rating(served, there):
    with pytest.raises(ConfigError, match="3 ratings for 4 answers"):
        play(served.url, there, Scripted(goes_on(2, tries=4)))


def test_a_branched_rollout_weighs_what_is_new_in_it(served, there):
    """Eight compactions cost eight times what one does, not one more prompt each time."""
    one, eight = (play(served.url, there, Scripted(goes_on(2), *[compacts] * times)) for times in (1, 8))
    own = [sum(len(node.token_ids) for node in played.trajectory.nodes if not node.sampled) for played in (one, eight)]
    assert own[1] < 2 * own[0]
    assert len(pack(eight.trajectory)) < 3 * len(pack(one.trajectory))
