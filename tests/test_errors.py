"""The exception tree: picklable, documented as it is, and silent about paths."""

import pickle
import re

import pytest

from filmroll import errors
from filmroll.errors import every_error


@pytest.mark.parametrize("kind", list(every_error()))
def test_errors_pickle_whole(kind):
    error = kind("a problem", remedy="Mend it", private="/secret", field="f", index=1)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert back.wire() == error.wire()


def test_the_drawn_tree_is_the_real_one():
    drawn = dict(re.findall(r"(\w+Error)\s+(\d{3})", errors.__doc__))
    assert drawn == {kind.__name__: str(kind.status) for kind in every_error()}


def test_the_wire_form_says_nothing_private():
    error = errors.ImageNotFoundError("no image", remedy="Put it", private="/home/someone/x.png")
    assert "/home" in str(error)
    assert "/home" not in str(error.wire())
    assert error.wire()["code"] == 404


def test_at_names_the_place_and_keeps_the_rest():
    error = errors.GridError("wrong grid").at(field="features.kwargs_data", index=2)
    assert isinstance(error, errors.GridError)
    assert (error.field, error.index) == ("features.kwargs_data", 2)
    assert error.at(index=5).field == "features.kwargs_data"
