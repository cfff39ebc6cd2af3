"""Whole rollouts against a served engine: what travels, what is kept, what is counted."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from filmroll.environments.color_codeword import ColorCodeword, ColorCodewordConfig
from filmroll.errors import ConfigError, EngineRefusedError, PlaceholderTextError, RenderError
from filmroll.render import load_renderer
from filmroll.rollout import EngineClient, Environment, Episode, Score
from filmroll.rollout.client import generate_request
from filmroll.rollout.worker import Played, RolloutTask, Worker
from filmroll.store import open_store
from filmroll.wire.generate import SamplingParams, encode
from filmroll.wire.packed import pack, unpack
from tests.families.cases import EVERY_CASE

SAMPLING = SamplingParams(max_tokens=6)


@pytest.fixture
def there(tiny_model, served):
    """A renderer that writes into the store that the served engine reads."""
    return load_renderer(tiny_model, open_store(served.store))


def play(url, renderer, tasks, environment=None, method="rollout"):
    async def together():
        client = EngineClient(url, "tiny")
        worker = Worker(environment or ColorCodeword(ColorCodewordConfig()), renderer, client)
        try:
            return await asyncio.gather(*(getattr(worker, method)(task) for task in tasks), return_exceptions=True)
        finally:
            await client.close()

    return asyncio.run(together())


def test_a_rollout_keeps_tokens_references_and_nothing_else(served, there):
    (played,) = play(served.url, there, [RolloutTask("r", 3, SAMPLING)])
    trajectory = played.trajectory
    assert [node.sampled for node in trajectory.nodes] == [False, True] * 3
    for node in trajectory.nodes[1::2]:
        assert len(node.logprobs) == len(node.token_ids) <= 6
        assert node.version == 0
        assert (node.logprobs <= 0).all()
    assert played.requests == 3
    assert played.receipt.consumed == played.images_sent > 0
    assert trajectory.expected
    packed = pack(trajectory)
    assert len(packed) < 4096
    assert b"pixel_values" not in packed
    assert b"data:image" not in packed


def test_law_once_on_disk(served, there):
    """A group shows the same pictures; each is one file, whoever put it."""
    before = {path for path in served.store.rglob("*") if path.is_file()}
    done = play(served.url, there, [RolloutTask(f"r{number}", 77, SAMPLING) for number in range(8)])
    distinct = {image.image.sha256 for one in done for image in one.trajectory.images}
    after = {path for path in served.store.rglob("*") if path.is_file()}
    assert {path.stem for path in after - before} <= distinct
    assert len([path for path in after if path.stem in distinct]) == len(distinct)


def test_the_same_seed_shows_the_same_episode(served, there):
    one, two, other = play(
        served.url, there, [RolloutTask("a", 5, SAMPLING), RolloutTask("b", 5, SAMPLING), RolloutTask("c", 6, SAMPLING)]
    )
    assert one.trajectory.expected == two.trajectory.expected
    assert one.trajectory.images == two.trajectory.images
    assert other.trajectory.images != one.trajectory.images


def test_a_demonstration_has_the_teachers_tokens(served, there):
    perfect = ColorCodeword(ColorCodewordConfig(teacher_accuracy=1.0))
    (played,) = play(served.url, there, [RolloutTask("d", 9, SAMPLING)], perfect, "demonstrate")
    trajectory = played.trajectory
    assert trajectory.reward == 1.0
    said = [there.parse(node.token_ids) for node in trajectory.nodes if node.sampled]
    assert said[-1] == trajectory.expected == "".join(said[:-1]) + trajectory.expected[len("".join(said[:-1])) :]
    assert all(node.token_ids[-1] == there.stop_token_ids[0] for node in trajectory.nodes if node.sampled)


WORTH = Score(1.0)


class Typing(Environment, Episode):
    """Shows a text and an image, again and again."""

    def __init__(self, source, text="look", turns=3, worth=WORTH):
        self.source, self.text, self.turns, self.worth = source, text, turns, worth

    def episode(self, seed):
        return Typing(self.source, self.text, self.turns, self.worth)

    async def begin(self):
        return [self.message()]

    async def reply(self, answer) -> Sequence[dict]:
        self.turns -= 1
        return [self.message()] if self.turns else []

    def message(self):
        return {
            "role": "user",
            "content": [{"type": "image", "image": self.source}, {"type": "text", "text": self.text}],
        }

    def score(self):
        return self.worth


PICTURE = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        (Typing(b"not an image"), "ImageFormatError"),
        (Typing("/no/such/file.png"), "ImageSourceError"),
        (Typing(PICTURE, "say <|image_pad|>"), PlaceholderTextError.__name__),
        (Typing(PICTURE, worth=0.5), "ConfigError"),
    ],
)
def test_a_broken_rollout_is_one_clear_error_and_others_go_on(served, there, environment, error):
    (broken,) = play(served.url, there, [RolloutTask("x", 1, SAMPLING)], environment)
    assert type(broken).__name__ == error
    assert "rollout x, its " in str(broken)
    (fine,) = play(served.url, there, [RolloutTask("y", 1, SAMPLING)])
    assert fine.requests == 3


def test_an_error_says_in_which_turn_of_which_rollout(served, there):
    class Second(Typing):
        def episode(self, seed):
            return Second(self.source)

        async def reply(self, answer):
            self.source = b"no image" if self.turns == 2 else self.source
            return await super().reply(answer)

    (broken,) = play(served.url, there, [RolloutTask("rl_4/prompt_1/rollout_0", 1, SAMPLING)], Second(PICTURE))
    assert "rollout rl_4/prompt_1/rollout_0, turn 1: this is no image" in str(broken)


def test_numbers_of_a_score_are_of_any_kind(served, there):
    """An environment counts in numpy and compares; what it gives crosses to the orchestrator all the same."""
    worth = Score(np.mean([0, 1]), {"right": np.True_, "loud": True, "far": np.float32(0.25), "most": 3}, 7, 8)
    (played,) = play(served.url, there, [RolloutTask("x", 1, SAMPLING)], Typing(PICTURE, worth=worth))
    crossed = unpack(pack(played), Played).trajectory
    assert crossed.reward == 0.5
    assert crossed.metrics == {"right": 1.0, "loud": 1.0, "far": 0.25, "most": 3.0}
    assert (crossed.expected, crossed.answer) == ("7", "8")


@pytest.mark.parametrize(
    ("worth", "said"),
    [
        (lambda: Score("1"), "the reward as a str"),
        (lambda: Score(None), "the reward as a NoneType"),
        (lambda: Score(float("nan")), "the reward nan"),
        (lambda: Score(1.0, {"near": None}), "the metric 'near' as a NoneType"),
    ],
)
def test_what_is_no_number_is_refused_where_it_is_given(worth, said):
    with pytest.raises(ConfigError, match=said):
        worth()


def test_an_image_deleted_before_the_engine_reads_it_is_named(served, there):
    kept, lost = (np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8) for number in (41, 42))
    message = {"role": "user", "content": [{"type": "image", "image": one} for one in (kept, lost)]}
    prompt = there.render([message])
    for path in served.store.rglob(f"{prompt.images[1].image.sha256}.png"):
        path.unlink()

    async def ask():
        client = EngineClient(served.url, "tiny")
        try:
            return await client.generate(prompt, SAMPLING, request_id="r")
        finally:
            await client.close()

    with pytest.raises(EngineRefusedError, match="404 image_not_found") as refused:
        asyncio.run(ask())
    assert refused.value.index == 1


def test_requests_grow_with_images_not_with_pixels(there):
    """Eight turns of 1024x1024: the body stays far below what one image's pixels would take."""
    prompt = there.render([{"role": "user", "content": "begin"}])
    sizes = []
    for turn in range(8):
        noise = np.full((1024, 1024, 3), turn, np.uint8)
        message = {"role": "user", "content": [{"type": "image", "image": noise}, {"type": "text", "text": "next"}]}
        prompt = there.bridge(prompt, [65, there.stop_token_ids[0]], [message])
        sizes.append(len(encode(generate_request(prompt, SAMPLING))))
    assert sizes[-1] < 64_000
    growth = np.diff(sizes)
    assert growth.max() - growth.min() < 64


def test_a_teacher_whose_words_cannot_be_told_from_the_templates_is_an_error_that_says_what_helps(tmp_path):
    """This template opens an answer otherwise once it is there than where it asks for one."""
    (case,) = [one for one in EVERY_CASE if one.name == "gemma3-released"]
    case.build(tmp_path / "model")
    unclear = load_renderer(tmp_path / "model", open_store(tmp_path / "store"))
    worker = Worker(ColorCodeword(ColorCodewordConfig()), unclear, client=None)
    with pytest.raises(RenderError, match="does not tell which tokens") as told:
        asyncio.run(worker.demonstrate(RolloutTask("d", 9, SAMPLING)))
    assert "warmup.steps = 0" in told.value.remedy
