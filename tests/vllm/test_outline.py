"""A model without its weights says what a trainer writes for it, and turns that into what its checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from filmroll.engine.vllm.outline import in_checkpoint_names, outline, shapes, ties
from filmroll.errors import CheckpointError
from filmroll.materialize.feed import load_model
from tests.families.cases import EVERY_CASE
from tests.families.cases.base import Case


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.name)
def test_it_names_what_a_trainer_writes_and_gives_back_what_was_saved(case: Case, tmp_path: Path) -> None:
    case.build(tmp_path / "model")
    written = load_model(tmp_path / "model").state_dict()
    bare = outline(str(tmp_path / "model"))
    assert shapes(bare) == {name: tuple(value.shape) for name, value in written.items()}
    assert all(value.is_meta for value in bare.state_dict().values())
    saved, ours = load_file(tmp_path / "model" / "model.safetensors"), in_checkpoint_names(bare, written)
    places = {name: value.data_ptr() for name, value in written.items()}
    assert all(places[name] == places[first] for name, first in ties(bare).items())
    assert len(set(places.values())) == len(places) - len(ties(bare))
    # A head that is tied may be saved or not.
    assert {name.rpartition("lm_head")[2] for name in saved.keys() ^ ours} <= {".weight"}
    assert all(torch.equal(saved[name], ours[name]) for name in saved.keys() & ours)


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "somebody_elses"}')
    with pytest.raises(CheckpointError, match="does not know the model") as caught:
        outline(str(tmp_path))
    assert str(tmp_path) not in caught.value.wire()["message"]
