"""Images that are missing where several ranks train: the share that may be is of all their samples together."""

from __future__ import annotations

from pathlib import Path

from tests.train.test_ranks import Together, alone, assert_same

MAY_MISS = 0.4
"""Of 7 samples 2 may be masked. Rank 1 has 3 and misses 2 of them; rank 0 has 4 and misses 1."""
DO = [["lost", 30], ["lost on both", 31], ["step", 32]]


def test_the_share_is_of_all_ranks_samples(tiny_model: Path, tmp_path: Path) -> None:
    one = alone(tmp_path / "one", tiny_model, tmp_path / "images_of_one", DO, may_miss=MAY_MISS)
    two = Together(tmp_path / "two", tiny_model, tmp_path / "images_of_two", DO, may_miss=MAY_MISS).answers()
    assert two[0]["samples_masked"] == 2
    assert_same(two[0], one[0])
    for answer in (one[1], two[1]):
        assert answer["error"] == "TrainingError"
        assert "3 of 7 samples of the step show images that cannot be had" in answer["text"]
        assert not answer["out_of_step"]
    # The step that was too much has left both as they were.
    assert two[2]["samples_masked"] == 0
    assert_same(two[2], one[2])
