"""Where images may come from, and what is said of those that may not."""

from __future__ import annotations

import base64
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmroll.errors import FilmrollError, ImageFormatError, ImageLimitError, ImageSourceError
from filmroll.store.ingest.canonical import Limits, canonical
from tests.store.pictures import encode, noise, sample_files

PNG = sample_files()["PNG"]


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def refused(source: object, kind: type[FilmrollError], limits: Limits | None = None) -> str:
    """The message to a client, checked to hold nothing private."""
    with pytest.raises(FilmrollError) as caught:
        canonical(source, limits)
    assert type(caught.value) is kind, repr(caught.value)
    message = caught.value.wire()["message"]
    assert isinstance(message, str)
    assert "0x" not in message
    assert "/tmp" not in message  # noqa: S108
    return message


def test_every_spelling_of_a_file_gives_the_same_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "100% é #1.png"
    path.write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    uri = path.as_uri()
    sources = (
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        path,
        str(path),
        path.name,
        uri,
        uri.replace("file:///", "file://localhost/"),
        uri.replace("file://", "FILE:"),
        data_uri(PNG),
        data_uri(PNG).replace("data:image/png", "DATA:IMAGE/PNG"),
    )
    assert {canonical(source).data for source in sources} == {PNG}


def test_the_name_of_a_file_says_nothing(tmp_path: Path) -> None:
    jpeg = tmp_path / "really.png"
    jpeg.write_bytes(sample_files()["JPEG"])
    assert canonical(jpeg).media_type == "image/jpeg"
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert "no image" in refused(text, ImageFormatError)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("data:image/png,abc", ImageSourceError),
        ("data:image/png;base64", ImageSourceError),
        ("data:image/png;base64,@@@@", ImageSourceError),
        ("data:image/png;base64,iVBORw0KG", ImageSourceError),
        ("data:image/png;base64,iVBO\nRw0K", ImageSourceError),
        ("data:image/png;base64,é", ImageSourceError),
        ("data:image/png;base64,", ImageFormatError),
        ("data:image/png;base64,aGVsbG8=", ImageFormatError),
        (data_uri(PNG, "image/jpeg"), ImageFormatError),
        (data_uri(PNG, ""), ImageFormatError),
        (data_uri(PNG, "text/html"), ImageFormatError),
    ],
)
def test_bad_data_uris(uri: str, kind: type[FilmrollError]) -> None:
    refused(uri, kind)


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.com/a.png",
        "HTTPS://example.com/a.png",
        "s3://bucket/a.png",
        "file://example.com/a.png",
        "file:a.png",
        "file:///a.png?x=1",
        "file:///a.png#x",
        "file://[",
        "",
        "no such file.png",
        "a\0b",
        "x" * 5000,
        "file:///no/such/file%00.png",
    ],
)
def test_places_that_are_not_read(uri: str) -> None:
    refused(uri, ImageSourceError)


def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    start = time.monotonic()
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", Path("/dev/zero")):
        refused(path, ImageSourceError)
    assert time.monotonic() - start < 1


def test_a_file_is_measured_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    assert "bytes" in refused(path, ImageLimitError)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    refused(PNG, ImageLimitError, Limits(max_bytes=len(PNG) - 1))
    refused(data_uri(PNG), ImageLimitError, Limits(max_bytes=len(PNG) - 4))
    canonical(data_uri(PNG), Limits(max_bytes=len(PNG)))


@pytest.mark.parametrize(
    "source", [noise(7, 5), noise(7, 5, 1), noise(7, 5, 1)[..., None], noise(7, 5, 4)[..., :3], noise(14, 10)[::2, ::2]]
)
def test_arrays_and_tensors(source: np.ndarray) -> None:
    import torch

    image = canonical(source)
    assert (image.width, image.height) == (7, 5)
    assert canonical(torch.from_numpy(source.copy())) == image
    assert canonical(Image.fromarray(source.squeeze())) == image


def test_an_array_with_alpha_is_put_on_white() -> None:
    array = np.zeros((1, 2, 4), np.uint8)
    array[0, 1, 3] = 255
    rgb = np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)
    assert canonical(array) == canonical(rgb)


def test_arrays_that_are_no_picture() -> None:
    import torch

    assert "channels first" in refused(noise(7, 5).transpose(2, 0, 1), ImageFormatError)
    assert "permute" in refused(torch.zeros(3, 8, 8, dtype=torch.uint8), ImageFormatError)
    assert "0..255" in refused(np.zeros((4, 4, 3), np.float32), ImageFormatError)
    refused(np.zeros((4, 4, 2), np.uint8), ImageFormatError)
    refused(np.zeros((2, 4, 4, 3), np.uint8), ImageFormatError)
    refused(np.zeros((0, 4, 3), np.uint8), ImageFormatError)
    refused(np.array(["a"], object), ImageFormatError)
    refused(torch.zeros(4, 4, 3, dtype=torch.bfloat16), ImageSourceError)
    refused(np.zeros((1, 70_000), np.uint8), ImageLimitError)
    for source in (None, 5, object(), [1, 2]):
        refused(source, ImageSourceError)


def test_a_pillow_image_is_turned_upright(tmp_path: Path) -> None:
    data = encode(Image.fromarray(noise(9, 5)), "PNG", orientation=6)
    (tmp_path / "turned.png").write_bytes(data)
    assert canonical(Image.open(tmp_path / "turned.png")) == canonical(data)


def test_a_broken_pillow_image_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(PNG[:-40])
    refused(Image.open(tmp_path / "cut.png"), ImageFormatError)
    closed = Image.open(tmp_path / "cut.png")
    closed.close()
    refused(closed, ImageFormatError)
