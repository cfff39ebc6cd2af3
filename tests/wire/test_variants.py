"""Every form in which other systems write references and descriptors is read, and nothing that is none."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from filmroll.errors import DescriptorError, ReferenceFormatError, TensorsError
from filmroll.wire.descriptor import ImageDescriptor, descriptor_json
from filmroll.wire.foreign import ForeignDescriptor
from filmroll.wire.reference import read_descriptor, read_reference, write_reference
from tests.wire.variants import DESCRIPTOR, DIGEST, INLINE, KIMI, descriptors, encoded, references, wrapped

URI = f"file:///run/assets/images/{DIGEST[:16]}.png"
NAME = f"{DIGEST[:16]}.png"
GRID = {"image_grid_thw": [[1, 16, 16]]}


@pytest.mark.parametrize("form", references())
def test_references_of_other_systems(form: str) -> None:
    read = read_reference(references()[form])
    assert isinstance(read, ForeignDescriptor)
    inside = "its image" in form
    assert read.locator == (INLINE.image.uri if inside else URI if form in "AB" else NAME)
    assert read.mm_hash == (INLINE if inside else DESCRIPTOR).image.sha256[:32]
    assert (read.family, read.modality, read.grids) == ("qwen_vl", "image", GRID)
    assert read.layout_fingerprint == DESCRIPTOR.layout_fingerprint


@pytest.mark.parametrize("form", descriptors())
def test_descriptors_of_other_systems(form: str) -> None:
    read = read_descriptor(json.loads(json.dumps(descriptors()[form])))
    assert isinstance(read, ForeignDescriptor)
    assert read.locator in (URI, NAME, INLINE.image.uri)
    assert read.modality == "image"
    assert read.layout_fingerprint == (None if "newest" in form else DESCRIPTOR.layout_fingerprint)
    assert read.grids == ({"grid_thws": [[1, 36, 46]]} if form == "Kimi's" else GRID)
    assert read.vllm_modality == ("vision_chunk" if form == "Kimi's" else None)


def test_what_is_no_grid_says_nothing_of_the_layout() -> None:
    read = read_descriptor(descriptors(payload=GRID | {"tokens": 64, "frames": [], "scale": 0.5})["newest"])
    assert isinstance(read, ForeignDescriptor)
    assert read.grids == GRID


@pytest.mark.parametrize("ours", [DESCRIPTOR, KIMI, INLINE])
def test_our_own_reference_may_be_wrapped_as_others_are(ours: ImageDescriptor) -> None:
    written = write_reference(ours)
    assert read_reference(written) == read_reference(wrapped(written.removeprefix("mmraw:"))) == ours
    assert read_descriptor(descriptor_json(ours)) == ours


def test_a_descriptor_by_reference_may_hold_one_of_ours() -> None:
    around = descriptors()["by reference"] | {"raw_ref": write_reference(DESCRIPTOR)}
    assert read_descriptor(around) == DESCRIPTOR


A = json.loads(references()["B"].removeprefix("mmraw:"))
NEWEST = descriptors()["newest"]


@pytest.mark.parametrize(
    "text",
    [
        "mmraw:v1:run:c5ece06d40951692b7035ec4dd381742:image:abababababababab:a.png:1x2x2",
        "mmraw:v4:" + encoded(json.dumps(A)),
        references()["A"] + "=",
        references()["A"].replace("mmraw:", "mmraw:+"),
        references()["C between colons"] + ":",
        references()["C between colons"].replace("run:", "r/n:"),
        wrapped(json.dumps(A | {"mm_hash": "ab" * 7})),
        wrapped(json.dumps(A | {"mm_hash": "ab" * 64})),
        wrapped(json.dumps({key: value for key, value in A.items() if key != "mm_hash"})),
        wrapped(json.dumps({key: value for key, value in A.items() if key != "raw_image_uri"})),
        wrapped(json.dumps(A | {"raw_image_id": NAME})),
        wrapped(json.dumps(A | {"something": 1})),
        wrapped(json.dumps(A | {"raw_image_uri": "file:///é"})),
        wrapped(json.dumps(A | {"filmroll": None})),
        wrapped(json.dumps(A | {"payload": {str(number): 1 for number in range(9)}})),
    ],
)
def test_other_references_are_refused(text: str) -> None:
    with pytest.raises(ReferenceFormatError):
        read_reference(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"raw_image_id": NAME},
        {"raw_image_uri": None},
        {"payload": None},
        {"something": 1},
        {"layout_fingerprint": "short"},
        {"raw_ref": references()["A"], "family": "kimi_k25"},
        {"raw_ref": references()["A"], "layout_fingerprint": "0" * 32},
        {"raw_ref": references()["A"], "raw_image_uri": URI.replace("run", "other")},
        {"raw_ref": references()["A"], "payload": {"image_grid_thw": [[1, 8, 32]]}},
    ],
)
def test_other_descriptors_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DescriptorError):
        read_descriptor(NEWEST | changes)


@pytest.mark.parametrize("key", ["pixel_values", "image_embeds", "image_features"])
def test_tensors_are_refused_by_every_form(key: str) -> None:
    for text in references(payload={key: [[1, 16, 16]]}).values():
        with pytest.raises(TensorsError, match=key):
            read_reference(text)
    for value in descriptors(payload={key: [1.0]}).values():
        if value["family"] == "qwen_vl":
            with pytest.raises(TypeError, match=key):
                read_descriptor(value)
    ours = msgspec.structs.replace(DESCRIPTOR, payload={key: [[1, 16, 16]]})
    with pytest.raises(TensorsError, match=key):
        read_reference(write_reference(ours))


def test_a_newer_filmroll_is_refused_with_what_to_do() -> None:
    newer = descriptor_json(DESCRIPTOR)
    newer["filmroll"] = newer["filmroll"] | {"v": 2, "something": "new"}
    with pytest.raises(DescriptorError, match=r"newer filmroll, in version 2.*same filmroll"):
        read_descriptor(newer)
    text = write_reference(DESCRIPTOR).replace('"v":1', '"v":2')
    with pytest.raises(ReferenceFormatError, match=r"newer filmroll, in version 2.*same filmroll"):
        read_reference(text)


def test_a_descriptor_without_end_is_refused() -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    with pytest.raises(DescriptorError, match="at most 1024 values"):
        read_descriptor(NEWEST | {"payload": endless})
