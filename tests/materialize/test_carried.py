"""Arrays that come beside samples: in every family they are what it makes of such a picture, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmroll.errors import FilmrollError, GridError, MessageError
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.carried import Carried
from filmroll.store import open_store
from filmroll.train.loading.processed import with_images
from filmroll.train.step import TrainStep
from filmroll.wire.processed import ProcessedImage
from filmroll.wire.training import MicroBatch, PlacedImage
from filmroll.wire.transport import Codec
from tests.store.pictures import noise
from tests.train.conftest import sample
from tests.train.every_case import CASES

SIZES = [(64, 40), (30, 90), (30, 90)]
FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
CODEC = Codec(TrainStep, tensors=True)
TYPES = [np.uint8, np.int32, np.int64, np.float32, np.float16]
MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Sent:
    """Three pictures, two of them of one size, as they come from an orchestrator."""

    def __init__(self, case, folder):
        CASES[case].build(folder / "model")
        self.family = load_family(folder / "model")
        store = open_store(folder / "images")
        self.descriptors = [
            self.family.describe(store.put(noise(height, width, seed=seed)))
            for seed, (width, height) in enumerate(SIZES)
        ]
        shown = [PlacedImage(one, number) for number, one in enumerate(self.descriptors)]
        one = msgspec.structs.replace(sample(4), images=shown)
        self.materializer = Materializer(store, self.family)
        self.work = with_images(TrainStep(0.0, 0, [MicroBatch([[one]])]), self.materializer, threads=2)
        self.images = through(self.work).images

    def load(self, images, descriptors=None):
        carried = Carried(self.family)
        carried.begin(images)
        return carried.load(self.descriptors if descriptors is None else descriptors)

    def refusal(self, number, kind, **changes):
        """What is said of the picture once its arrays are other than they were, under a checksum that is right."""
        was = self.images[number]
        arrays = {name: array for name, array in (was.arrays | changes).items() if array is not None}
        images = [*self.images]
        images[number] = ProcessedImage.of(was.identity, arrays)
        with pytest.raises(kind) as caught:
            self.load(through(msgspec.structs.replace(self.work, images=images)).images)
        assert caught.value.index == number
        return caught.value


def through(work):
    """The step as a trainer gets it."""
    data = b"".join(bytes(part) for part in CODEC.encode(0, work))
    return CODEC.decode(CODEC.split(memoryview(data)))[1]


@pytest.fixture(scope="module", params=sorted(CASES))
def sent(request, tmp_path_factory):
    return Sent(request.param, tmp_path_factory.mktemp("case"))


def test_they_are_what_the_forward_takes_of_the_materializers(sent):
    loaded, ours = sent.load(sent.images), sent.materializer.load(sent.descriptors)
    assert loaded.receipt == ours.receipt
    for found, expected in zip(loaded.pictures, ours.pictures, strict=True):
        assert (found.identity, found.features) == (expected.identity, expected.features)
        assert found.arrays.keys() == expected.arrays.keys() - set(sent.family.forward.unused)
        for name, array in found.arrays.items():
            np.testing.assert_array_equal(array, expected.arrays[name])
    levels = sum(array.nbytes for image in sent.images for array in image.arrays.values() if array.dtype == np.uint8)
    assert levels == sum(sent.family.level_bytes(one.image) for one in sent.descriptors)


@MANY
@given(data=st.data())
def test_an_array_of_another_name_type_or_shape_is_refused(sent, data):
    number = data.draw(st.integers(0, 2))
    arrays = sent.images[number].arrays
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    how = data.draw(st.sampled_from(["gone", "more", "renamed", "type", "fewer", "longer", "flat", "deeper"]))
    if how == "type":
        dtype = data.draw(st.sampled_from([one for one in TYPES if one != array.dtype]))
        complaint = f"its {name} are {np.dtype(dtype)} of shape"
        assert complaint in str(sent.refusal(number, MessageError, **{name: array.astype(dtype)}))
        return
    axis = data.draw(st.integers(0, array.ndim - 1))
    shapes = {
        "fewer": lambda: np.delete(array, 0, axis),
        "longer": lambda: np.concatenate([array, array], axis),
        "flat": lambda: np.concatenate([array.reshape(-1), array.reshape(-1)]),
        "deeper": lambda: array[None],
    }
    if how in shapes:
        error = sent.refusal(number, MessageError, **{name: shapes[how]()})
        assert f"its {name} are {array.dtype} of shape" in str(error)
        return
    changes = {"gone": {name: None}, "more": {"video": array}, "renamed": {name: None, "video": array}}[how]
    assert f"the model's family makes {', '.join(sorted(arrays))}" in str(sent.refusal(number, MessageError, **changes))


@MANY
@given(data=st.data())
def test_what_is_no_levels_is_compared_number_by_number(sent, data):
    number = data.draw(st.integers(0, 2))
    told = {name: array for name, array in sent.images[number].arrays.items() if array.dtype != np.uint8}
    if not told:
        assert sent.images[number].arrays.keys() == {"pixel_values"}
        return
    name = data.draw(st.sampled_from(sorted(told)))
    forged = told[name].copy()
    place = data.draw(st.integers(0, forged.size - 1))
    forged.reshape(-1)[place] = data.draw(
        st.integers(-(2**63), 2**63 - 1).filter(lambda value: value != forged.reshape(-1)[place])
    )
    assert f"its {name} are " in str(sent.refusal(number, GridError, **{name: forged}))


@MANY
@given(data=st.data())
def test_levels_are_those_that_were_made_of_the_picture(sent, data):
    """Under the checksum with which they came."""
    number = data.draw(st.integers(0, 2))
    was = sent.images[number]
    levels = was.arrays["pixel_values"].copy()
    place = data.draw(st.integers(0, levels.size - 1))
    levels.reshape(-1)[place] ^= data.draw(st.integers(1, 255))
    images = [*sent.images]
    images[number] = msgspec.structs.replace(was, arrays=was.arrays | {"pixel_values": levels})
    with pytest.raises(MessageError, match="checksum differs") as caught:
        sent.load(images)
    assert caught.value.index == number


def test_those_travel_that_the_document_names(sent):
    table = FORMAT.read_text().partition("| family | beside `pixel_values` |\n")[2].partition("\n\n")[0]
    (row,) = [line for line in table.splitlines() if f"`{sent.family.name}`" in line]
    assert set(re.findall("`(.*?)`", row.split("|")[2])) == sent.images[0].arrays.keys() - {"pixel_values"}


def test_no_picture_is_taken_for_another(sent):
    """The second and the third have one size: nothing but their checksums tells their arrays apart."""
    first, second, third = sent.images
    swapped = [
        first,
        msgspec.structs.replace(second, arrays=third.arrays),
        msgspec.structs.replace(third, arrays=second.arrays),
    ]
    with pytest.raises(MessageError, match="checksum differs"):
        sent.load(swapped)
    renamed = [first, msgspec.structs.replace(third, sha256=second.sha256), third]
    with pytest.raises(MessageError, match="checksum differs"):
        sent.load(renamed)


def test_one_that_comes_twice_or_never_is_refused(sent):
    with pytest.raises(MessageError, match="carries the arrays of 3 images in 4 places"):
        sent.load([*sent.images, sent.images[1]])
    with pytest.raises(MessageError, match="did not come with the samples") as caught:
        sent.load(sent.images[:2])
    assert caught.value.index == 2


@MANY
@given(width=st.integers(1, 2**16), height=st.integers(1, 2**16))
def test_a_claimed_size_has_the_arrays_of_that_size_or_is_refused(sent, width, height):
    """Some sizes share all arrays: what such a claim changes, nothing depends on."""
    true = sent.descriptors[0]
    claimed = msgspec.structs.replace(true.image, width=width, height=height)
    try:
        sent.load(sent.images, [msgspec.structs.replace(true, image=claimed)])
    except FilmrollError:
        return
    layout = sent.family.layout(width, height)
    assert layout.payload == true.payload
    assert sum(array.nbytes for array in sent.images[0].arrays.values() if array.dtype == np.uint8) == (
        sent.family.level_bytes(claimed)
    )


def test_threads_change_nothing_but_the_time(sent):
    raw = msgspec.structs.replace(sent.work, images=[])
    for threads in (1, 3):
        fresh = Materializer(sent.materializer.store, sent.family)
        made = with_images(raw, fresh, threads=threads)
        assert [one.checksum for one in made.images] == [one.checksum for one in sent.images]
        assert [one.identity for one in made.images] == [one.identity for one in sent.descriptors]
