"""Trajectories and samples made by hand, and a model whose embeddings are its head."""

import shutil

import numpy as np
import pytest

from filmroll.families.base import Placeholders
from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.image import ImageRef
from filmroll.materialize.feed import load_model
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.training import LossWeights, PlacedImage, TrainingSample

PAD = 99
FAMILY = QwenVL(QwenVLSettings(), placeholders=Placeholders(image=PAD, unsampled=(PAD,), texts=()))


def descriptor(number: int = 0, tokens: int = 3) -> ImageDescriptor:
    digest = f"{number:064x}"
    return ImageDescriptor(
        image=ImageRef(f"file:///s/{digest}.png", digest, "image/png", 32, 32, 100),
        family="qwen_vl",
        layout_fingerprint="0" * 32,
        recipe="1" * 32,
        payload={"image_grid_thw": [[1, 2, 2 * tokens]]},
        tokens=tokens,
    )


def sample(tokens: int, images=(), name="s", **changes) -> TrainingSample:
    """A sample whose images stand at the given (offset, length)."""
    ids = np.arange(tokens, dtype=np.int32) % 90
    for offset, length in images:
        ids[offset : offset + length] = PAD
    values = {
        "token_ids": ids,
        "trained": np.ones(tokens, np.uint8),
        "logprobs": np.zeros(tokens, np.float32),
        "temperatures": np.ones(tokens, np.float32),
        "versions": np.zeros(tokens, np.int32),
        "advantage": 1.0,
        "weights": LossWeights(rl=1.0),
        "images": [PlacedImage(descriptor(n, length), offset) for n, (offset, length) in enumerate(images)],
    }
    return TrainingSample(name=name, **(values | changes))


@pytest.fixture
def two_turns() -> Trajectory:
    """prompt (1 image of 3 tokens), answer of 2, prompt (1 image of 2 tokens), answer of 1."""
    made = Trajectory("t", PAD)
    node = made.add_prompt(ROOT, [1, PAD, 2], [descriptor(1, 3)])
    node = made.add_sampled(node, [10, 11], [-0.1, -0.2], temperature=0.5, version=4, finish_reason="stop")
    node = made.add_prompt(node, [PAD, 3], [descriptor(2, 2)])
    made.add_sampled(node, [12], [-0.3], temperature=0.5, version=5, finish_reason="stop")
    return made


@pytest.fixture(scope="session")
def tied_model(tiny_model, tmp_path_factory):
    """The tiny model as small releases are: one tensor embeds and is the head."""
    tied = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(tiny_model, tied)
    model = load_model(tiny_model)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    model.save_pretrained(tied)
    return tied


def pytest_terminal_summary(terminalreporter):
    """What tests on the device have said of themselves: how far apart two ways to the same result came out."""
    reports = [one for key in ("passed", "failed") for one in terminalreporter.stats.get(key, ())]
    told = [one for one in reports if one.when == "call" and "gpu" in one.keywords and one.user_properties]
    if told:
        terminalreporter.section("how far apart, of how far they may be")
    for one in told:
        apart = ", ".join(f"{name} {value}" for name, value in one.user_properties)
        terminalreporter.write_line(f"{one.nodeid.partition('::')[2]}: {apart}")
