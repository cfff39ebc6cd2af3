"""Errors about images say in which sample, branch and turn they are, and the how manieth they are there."""

from __future__ import annotations

import re

import numpy as np
import pytest

from filmroll.errors import FilmrollError, GridError, ReceiptError
from filmroll.train.loading.places import of_micro_batch, of_sample, place
from filmroll.wire.training import MicroBatch, TrainingSample
from tests.train.conftest import sample


def conversation(name: str) -> TrainingSample:
    """prompt (image), answer, prompt (two images), answer; the first answer is trained in another branch."""
    answers = np.zeros(20, bool)
    answers[[5, 6, 17, 18, 19]] = True
    trained = answers.astype(np.uint8)
    trained[:10] = 0
    return sample(
        20, [(1, 3), (8, 2), (12, 3)], name=name, trained=trained, versions=np.where(answers, 4, -1).astype(np.int32)
    )


ONE, TWO = conversation("rl_3/prompt_1/rollout_2/branch_0"), conversation("rl_3/prompt_1/rollout_4/branch_1")
BATCH = MicroBatch([[ONE], [sample(4, name="text alone")], [TWO]])


def said(where: object, error: FilmrollError) -> FilmrollError:
    with pytest.raises(FilmrollError) as caught, where:  # type: ignore[attr-defined]
        raise error
    assert type(caught.value) is type(error)
    assert caught.value.remedy == error.remedy
    return caught.value


def test_an_image_is_in_the_turn_that_shows_it() -> None:
    assert [place(ONE, index).rpartition(", ")[2] for index in range(3)] == ["turn 0", "turn 1", "turn 1"]
    demonstrated = sample(9, [(0, 2), (5, 2)], trained=np.array([0, 0, 0, 1, 1, 0, 0, 0, 1], np.uint8))
    demonstrated.versions[:] = -1
    assert [place(demonstrated, index) for index in range(2)] == ["sample s, turn 0", "sample s, turn 1"]


def test_an_image_of_a_micro_batch_is_named_by_its_place_in_its_own_sample() -> None:
    error = said(of_micro_batch(BATCH), GridError("wrong", remedy="mend it", index=4))
    assert str(error) == "image 1: sample rl_3/prompt_1/rollout_4/branch_1, turn 1: wrong. mend it"


def test_an_image_of_a_sample_keeps_its_number() -> None:
    assert str(said(of_sample(ONE), GridError("wrong", index=2))) == f"image 2: sample {ONE.name}, turn 1: wrong"
    assert str(said(of_sample(ONE), GridError("wrong"))) == f"sample {ONE.name}: wrong"
    assert str(said(of_sample(ONE), GridError("wrong", index=7))) == f"image 7: sample {ONE.name}: wrong"


def test_counts_that_differ_are_about_all_images() -> None:
    error = said(of_micro_batch(BATCH), ReceiptError("6 images were referred to, 5 consumed"))
    names = re.findall(r"sample (\S+), turn (\d), image (\d)", str(error))
    assert names == [(ONE.name, "0", "0"), (ONE.name, "1", "1"), (ONE.name, "1", "2"), (TWO.name, "0", "0")]
    assert str(error).startswith("one of 6 images (")
    assert "; and 2 more): 6 images were referred to, 5 consumed" in str(error)


def test_what_is_about_no_image_stays_as_it_is() -> None:
    assert str(said(of_micro_batch(BATCH), FilmrollError("the disk is full"))) == "the disk is full"
