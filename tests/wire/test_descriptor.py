"""References and descriptors: one written form, byte for byte, and nothing else is read."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import DescriptorError, FilmrollError, ReferenceFormatError
from filmroll.image import ImageRef
from filmroll.wire.descriptor import ImageDescriptor, descriptor_json, refuse_tensors
from filmroll.wire.reference import MAX_REFERENCE_CHARS, read_descriptor, read_reference, write_reference
from tests.wire.variants import DESCRIPTOR, DIGEST

WRITTEN = (
    'mmraw:{"family":"qwen_vl","filmroll":{"height":256,"nbytes":1234,"recipe":"0123456789abcdef0123456789abcdef",'
    '"tokens":64,"v":1,"width":256},"fingerprint":"c5ece06d40951692b7035ec4dd381742",'
    f'"mm_hash":"{DIGEST}","modality":"image","payload":{{"image_grid_thw":[[1,16,16]]}},'
    f'"raw_image_uri":"file:///run/assets/images/ab/{DIGEST}.png"}}'
)


def test_the_written_reference_is_the_documented_one():
    assert write_reference(DESCRIPTOR) == WRITTEN


def test_a_reference_reads_back():
    assert read_reference(WRITTEN) == DESCRIPTOR


def test_a_descriptor_reads_back_through_json():
    assert read_descriptor(json.loads(json.dumps(descriptor_json(DESCRIPTOR)))) == DESCRIPTOR


def test_another_name_of_the_modality_travels_where_there_is_one():
    chunk = msgspec.structs.replace(DESCRIPTOR, family="kimi_k25", vllm_modality="vision_chunk")
    assert descriptor_json(chunk)["vllm_modality"] == "vision_chunk"
    assert read_descriptor(json.loads(json.dumps(descriptor_json(chunk)))) == chunk
    assert read_reference(write_reference(chunk)) == chunk
    assert "vllm_modality" not in descriptor_json(DESCRIPTOR)


def test_the_keys_of_other_systems_are_there():
    written = descriptor_json(DESCRIPTOR)
    assert written["kind"] == "prime_raw_mm_item"
    assert written["modality"] == "image"
    assert written["raw_image_uri"] == DESCRIPTOR.image.uri
    assert written["payload"] == {"image_grid_thw": [[1, 16, 16]]}


@pytest.mark.parametrize("key", ["pixel_values", "image_embeds", "image_features"])
def test_tensors_anywhere_inside_are_a_type_error(key):
    with pytest.raises(TypeError, match=key):
        read_descriptor(descriptor_json(DESCRIPTOR) | {"payload": {"deep": [{key: [1.0]}]}})
    with pytest.raises(TypeError, match=key):
        refuse_tensors({"a": [{"b": {key: None}}]})


def changed(**changes):
    form = json.loads(WRITTEN.removeprefix("mmraw:"))
    for path, value in changes.items():
        target = form
        *outer, last = path.split("__")
        for name in outer:
            target = target[name]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return "mmraw:" + json.dumps(form)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mmraw:",
        "mmraw:null",
        "mmraw:[]",
        "mmraw:{}",
        "mmraw:v2:AAAA",
        "gAAAAA==",
        WRITTEN.removeprefix("mmraw:"),
        WRITTEN[:-1],
        WRITTEN + "}",
        WRITTEN + " " * MAX_REFERENCE_CHARS,
        "mmraw:" + "[" * 16_000,
        changed(mm_hash=DIGEST[:32]),
        changed(mm_hash=DIGEST.upper()),
        changed(mm_hash="../" + DIGEST[3:]),
        changed(mm_hash=DIGEST + "\n"),
        changed(family="qwen vl"),
        changed(family="qwen_vl\n"),
        changed(family=""),
        changed(fingerprint="xyz"),
        changed(payload={"image_grid_thw": [[1, -16, 16]]}),
        changed(payload={"image_grid_thw": [[1, 16]]}),
        changed(payload={"image_grid_thw": [[1, 16, 1.5]]}),
        changed(payload={"image_grid_thw": [[1, 16, 16]] * 2}),
        changed(raw_image_uri="file:///etc/passwd"),
        changed(raw_image_uri=f"file:///x/{DIGEST}.exe"),
        changed(raw_image_uri=None),
        changed(filmroll__v=2),
        changed(filmroll__tokens=0),
        changed(filmroll__width=2**40),
        changed(pixels="AAAA"),
    ],
)
def test_anything_else_is_refused_with_a_reason(text):
    with pytest.raises(ReferenceFormatError) as refusal:
        read_reference(text)
    assert refusal.value.status == 400
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("value", [None, 3, [], {}, "x", {"kind": "prime_raw_mm_item"}])
def test_no_other_object_is_a_descriptor(value):
    with pytest.raises(DescriptorError):
        read_descriptor(value)


def test_another_kind_is_no_descriptor():
    with pytest.raises(DescriptorError, match="kind"):
        read_descriptor(descriptor_json(DESCRIPTOR) | {"kind": "video"})


@given(st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.lists(st.integers())))
def test_any_value_is_read_or_refused(value):
    with pytest.raises(ReferenceFormatError):
        read_reference(value)


@given(st.integers(0, len(WRITTEN) - 1), st.characters())
def test_law_writing_what_was_read_is_a_fixed_point(place, character):
    text = WRITTEN[:place] + character + WRITTEN[place + 1 :]
    try:
        read = read_reference(text)
    except FilmrollError:
        return
    written = write_reference(read)
    assert read_reference(written) == read
    assert write_reference(read_reference(written)) == written


names = st.from_regex(r"\A[A-Za-z0-9_.-]{1,20}\Z")
counts = st.integers(1, 2**24)
descriptors = st.builds(
    ImageDescriptor,
    image=st.builds(
        lambda digest, kind, inside, width, height, nbytes: ImageRef(
            f"data:{kind[0]};base64,{inside}" if inside else f"file:///images/{digest}{kind[1]}",
            digest,
            kind[0],
            width,
            height,
            nbytes,
        ),
        st.from_regex(r"\A[0-9a-f]{64}\Z"),
        st.sampled_from([("image/png", ".png"), ("image/jpeg", ".jpg"), ("image/webp", ".webp")]),
        st.one_of(st.just(""), st.from_regex(r"\A[A-Za-z0-9+/]{4,80}={0,2}\Z")),
        st.integers(1, 2**20),
        st.integers(1, 2**20),
        st.integers(1, 2**32),
    ),
    family=names,
    layout_fingerprint=st.from_regex(r"\A[0-9a-f]{16,64}\Z"),
    recipe=st.from_regex(r"\A[0-9a-f]{16,64}\Z"),
    payload=st.dictionaries(names, st.lists(st.tuples(counts, counts, counts).map(list), max_size=1), max_size=3),
    tokens=counts,
    modality=names,
    vllm_modality=st.none() | names,
)


@given(descriptors)
def test_law_reading_undoes_writing(descriptor):
    assert read_reference(write_reference(descriptor)) == descriptor
    assert read_descriptor(msgspec.json.decode(msgspec.json.encode(descriptor_json(descriptor)))) == descriptor


@given(descriptors)
def test_the_written_form_is_canonical(descriptor):
    text = write_reference(descriptor)
    assert write_reference(read_reference(text)) == text
    assert text == "mmraw:" + json.dumps(json.loads(text[6:]), sort_keys=True, separators=(",", ":"))
