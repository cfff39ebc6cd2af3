"""What holds for every family: it sees what the model's own processor sees, and the model agrees.

A new family writes its cases below tests/families/cases and names them there; it passes all of this by
being listed. `make reliability` looks at 5,000 sizes and 200 pictures a case, every other run at a slice.
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16
from PIL import Image

from filmroll.errors import CheckpointError, FilmrollError, ImageFormatError, LayoutError
from filmroll.families import Family, load_family
from filmroll.families.base import Dtype
from filmroll.families.recipe import Backend
from filmroll.image import ImageRef
from filmroll.materialize import Materializer
from filmroll.materialize.feed import feeding, load_model, model_inputs, picture_inputs
from filmroll.materialize.sheet import Picture, Sheet
from filmroll.pixels.decode import decode
from filmroll.render.expand import expand
from filmroll.store import open_store
from filmroll.wire.descriptor import ImageDescriptor
from tests.families.cases import EVERY_CASE
from tests.families.cases.base import Case
from tests.families.pictures import EDGES, MODES, Size, noise, of_mode, sizes, stored, turned
from tests.families.theirs import Refusal, Theirs
from tests.store.effort import effort

pytestmark = pytest.mark.reliability
MAX_REAL = 400_000
"""Sizes above this area are tried by arithmetic alone: making the picture costs too much."""
HARMLESS = {"do_convert_rgb", "processor_class"}
"""Settings that no picture from a store depends on."""


class Made:
    """One case, built: our family and their processors of the same folder, working with one backend."""

    def __init__(self, case: Case, folder: Path, pool: ProcessPoolExecutor, backend: Backend | None = None) -> None:
        self.case, self.folder = case, folder
        self.family = load_family(folder, backend=backend)
        self.theirs = Theirs(pool, folder, backend or case.backends[0], flat=case.flat)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def model(self) -> Any:
        return load_model(self.folder)

    def text(self, *parts: str | None) -> str:
        """A chat of one user turn; None is an image."""
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        messages = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def expanded(self, text: str, images: Sequence[ImageDescriptor]) -> list[int]:
        logical = self.tokenizer(self.family.prompt_text(text))["input_ids"]
        ids: list[int] = expand(logical, images, self.family).token_ids.tolist()
        return ids

    def describe(self, size: Size) -> ImageDescriptor:
        height, width = size
        return self.family.describe(ImageRef("file:///a.png", "ab" * 32, "image/png", width, height, 1))

    def layout(self, size: Size) -> Any:
        """Ours; None where the family refuses."""
        try:
            return self.family.layout(size[1], size[0])
        except LayoutError:
            return None

    def small_sizes(self, count: int, seed: int) -> list[Size]:
        """Sizes that have a layout and cost little."""
        found = [size for size in sizes(self.case, 4 * count, seed, most=300) if self.layout(size)]
        return found[:count]


@pytest.fixture(scope="session", params=EVERY_CASE, ids=lambda case: case.name)
def made(request: Any, built: Callable[[Case], Path], pool: ProcessPoolExecutor) -> Made:
    """A case as it is loaded by default."""
    return Made(request.param, built(request.param), pool)


PAIRS = [(case, backend) for case in EVERY_CASE for backend in case.backends]


@pytest.fixture(scope="session", params=PAIRS, ids=[f"{case.name}-{backend}" for case, backend in PAIRS])
def seen(request: Any, built: Callable[[Case], Path], pool: ProcessPoolExecutor) -> Made:
    """A case under each of transformers' backends that exists for it."""
    case, backend = request.param
    return Made(case, built(case), pool, backend)


# Layout


def test_law_layout_equals_processor(made: Made) -> None:
    if made.case.counted is None:
        pytest.skip("its processor counts no tokens without an image")
    some = [*EDGES, *made.case.edges, *sizes(made.case, effort(300, 5000))]
    tried = [size for size in some if size[0] not in made.case.miscounted]
    wrong = []
    for size, count in zip(tried, made.theirs.counts(tried), strict=True):
        layout = made.layout(size)
        ours = None if layout is None else getattr(layout, made.case.counted)
        if ours != (None if isinstance(count, Refusal) else count):
            wrong.append((size, ours, count))
    # Some arithmetic counts on where the processor itself fails.
    refused = [size for size, ours, _ in wrong if ours is None]
    failed = [isinstance(real, Refusal) for real in made.theirs.measured(made.text(None), refused)]
    assert [one for one in wrong if one[1] is not None] == []
    assert all(failed), [size for size, fails in zip(refused, failed, strict=True) if not fails]


def test_law_layout_equals_processor_when_it_runs(seen: Made) -> None:
    """The arithmetic above says how many; here is where and what, and that the arithmetic itself says the truth."""
    some = [*EDGES, *seen.case.edges, *sizes(seen.case, effort(40, 500), 1)]
    tried = [size for size in some if size[0] * size[1] <= MAX_REAL]
    text = seen.text(None, "What is this?")
    wrong = []
    for size, real in zip(tried, seen.theirs.measured(text, tried), strict=True):
        layout = seen.layout(size)
        if layout is None or isinstance(real, Refusal):
            if not (layout is None and isinstance(real, Refusal)):
                wrong.append((size, layout, real))
            continue
        image = seen.describe(size)
        assert seen.expanded(text, [image]) == real["input_ids"].tolist(), size
        expansion = seen.family.expansion(image)
        assert (len(expansion), image.tokens) == (layout.tokens, layout.tokens), size
        assert np.count_nonzero(expansion == seen.family.placeholders.image) == layout.features, size
        for name, grids in image.payload.items():
            if name in real:
                assert real[name].tolist() == grids, size
    assert wrong == []


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_side_below_one_has_no_layout(made: Made, size: Size) -> None:
    with pytest.raises(LayoutError, match="at least 1"):
        made.family.layout(*size)


def test_the_payload_travels(made: Made) -> None:
    for size in made.small_sizes(20, 2):
        image = made.describe(size)
        assert msgspec.json.decode(msgspec.json.encode(image), type=ImageDescriptor) == image


# Pixels


def test_law_pixels_equals_processor(seen: Made) -> None:
    tried = seen.small_sizes(effort(6, 60), 3)
    pictures = [noise(*size, seed) for seed, size in enumerate(tried)]
    for picture, theirs in zip(pictures, seen.theirs.each([stored(picture) for picture in pictures]), strict=True):
        assert_equal(seen, seen.family.pixels([picture]), theirs)


def test_law_pixels_equals_processor_for_several(seen: Made) -> None:
    """Different sizes in one call: what a processor pads, we pad."""
    pictures = [noise(*size, seed) for seed, size in enumerate(seen.small_sizes(4, 4))]
    assert_equal(seen, seen.family.pixels(pictures), seen.theirs.arrays([stored(picture) for picture in pictures]))


def test_law_pixels_equals_processor_for_every_mode(seen: Made) -> None:
    """What our reader decodes from the stored bytes, against the processor on those bytes opened by Pillow."""
    tried = seen.small_sizes(len(MODES) * effort(1, 16), 5)
    modes = [MODES[number % len(MODES)] for number in range(len(tried))]
    files = [stored(of_mode(mode, *size, seed)) for seed, (mode, size) in enumerate(zip(modes, tried, strict=True))]
    assert_files_equal(seen, files)


def test_law_pixels_equals_processor_for_every_orientation(made: Made) -> None:
    files = [
        stored(turned(form, orientation, 40, 70)) for form in ("JPEG", "PNG", "WEBP") for orientation in range(1, 9)
    ]
    shapes = [decode(file, max_pixels=10**4).shape[:2] for file in files]
    assert shapes == [*[(40, 70)] * 4, *[(70, 40)] * 4] * 3
    assert_files_equal(made, files)


def test_bfloat16_is_float32_rounded(made: Made) -> None:
    pictures = [noise(40, 70, 1), noise(130, 30, 2)]
    exact, rounded = made.family.pixels(pictures), made.family.pixels(pictures, "bfloat16")
    assert list(exact) == list(rounded)
    for name, array in exact.items():
        expected = array.astype(bfloat16) if array.dtype == np.float32 else array
        assert rounded[name].dtype == expected.dtype
        np.testing.assert_array_equal(rounded[name], expected)


def test_levels_normalized_late_are_the_same_values(seen: Made) -> None:
    pictures = [noise(*size, seed) for seed, size in enumerate(seen.small_sizes(4, 6))]
    levels = [seen.family.pixels([picture], "uint8") for picture in pictures]
    assert all(part["pixel_values"].dtype == np.uint8 for part in levels)
    late = seen.family.join([seen.family.normalized(part) for part in levels])
    at_once = seen.family.pixels(pictures)
    assert list(late) == list(at_once)
    for name, array in at_once.items():
        assert late[name].dtype == array.dtype
        np.testing.assert_array_equal(late[name], array)


def test_a_model_is_fed_the_same_values_from_levels(seen: Made) -> None:
    """To the last bit, wherever they are normalized: no model can tell what was kept until then."""
    pictures = [noise(*size, seed) for seed, size in enumerate(seen.small_sizes(3, 6))]
    dtypes: tuple[Dtype, ...] = ("float32", "uint8")
    early, late = (
        picture_inputs(
            seen.family,
            Sheet.of([_picture(seen.family, str(number), pictures[number], dtype) for number in (0, 1, 0, 2)]),
        )
        for dtype in dtypes
    )
    assert list(early) == list(late)
    for name, value in early.items():
        assert late[name].dtype == value.dtype
        assert torch.equal(late[name], value)


def test_no_images_are_no_arrays(made: Made) -> None:
    assert made.family.pixels([]) == {}


def test_a_pil_image_is_read_as_the_store_reads_it(made: Made) -> None:
    clear, white = Image.new("RGBA", (70, 40), (9, 9, 9, 0)), np.full((40, 70, 3), 255, np.uint8)
    for name, array in made.family.pixels([clear]).items():
        np.testing.assert_array_equal(array, made.family.pixels([white])[name])


@pytest.mark.parametrize("image", [b"png", "a.png", np.zeros((4, 4)), np.zeros((3, 4, 4), np.uint8), None])
def test_anything_else_is_refused_by_its_number(made: Made, image: Any) -> None:
    with pytest.raises(ImageFormatError) as refusal:
        made.family.pixels([noise(40, 70, 1), image])
    assert refusal.value.index == 1


def assert_files_equal(made: Made, files: Sequence[bytes]) -> None:
    for file, theirs in zip(files, made.theirs.each(files), strict=True):
        assert_equal(made, made.family.pixels([decode(file, max_pixels=10**6)]), theirs)


def assert_equal(made: Made, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape), name
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=made.case.tolerance)


# Placeholders


@pytest.mark.parametrize(
    "parts",
    [(None, "What is this?"), ("First\n", None, "then", None, None, "\nSame? "), (None,), ("\n\n", None, "\n\n")],
    ids=["one", "several", "alone", "between-newlines"],
)
def test_placeholders_expand_as_in_the_processor(made: Made, parts: tuple[str | None, ...]) -> None:
    tried = made.small_sizes(parts.count(None), 7)
    text = made.text(*parts)
    files = [stored(noise(*size, 0)) for size in tried]
    theirs = made.theirs.inputs([text], [files])["input_ids"][0].tolist()
    assert made.expanded(text, [made.describe(size) for size in tried]) == theirs


def test_a_hostile_payload_builds_nothing_large(made: Made) -> None:
    """What arrives instead of the true expansion is either refused or simply another array."""
    honest = made.describe((70, 40))
    names = list(honest.payload) or ["image_grid_thw"]
    grids: list[list[list[int]]] = [[], [[1, 1, 1]], [[2**24, 2**24, 2**24]], [[1, 2**24, 1]], [[2**24, 1, 7]]]
    payloads = [{}, *[dict.fromkeys(names, grid) for grid in grids], *[{name: grids[2]} for name in names]]
    for payload in payloads:
        for tokens in (1, 2, 1000):
            forged = msgspec.structs.replace(honest, payload=payload, tokens=tokens)
            tracemalloc.start()
            try:
                assert len(made.family.expansion(forged)) <= tokens
            except FilmrollError:
                pass
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert peak < 200_000


# The model


def test_the_model_gives_the_logits_that_it_gives_on_the_processors_tensors(made: Made, tmp_path: Path) -> None:
    texts = [made.text(None, "A ", None), made.text("B", None)]
    files = [stored(noise(*size, seed)) for seed, size in enumerate(made.small_sizes(3, 8))]
    theirs = made.theirs.inputs(texts, [files[:2], files[2:]])
    store = open_store(tmp_path)
    images = [made.family.describe(store.put(file)) for file in files]
    pictures = Materializer(store, made.family).load(images).pictures
    rows = [made.expanded(texts[0], images[:2]), made.expanded(texts[1], images[2:])]
    ours = model_inputs(made.family, rows, Sheet.of(pictures), pad="right")
    assert set(ours) == set(theirs) - set(made.family.forward.unused)
    there = ours["attention_mask"].bool()
    with torch.no_grad():
        expected = made.model(**{name: torch.from_numpy(array) for name, array in theirs.items()}).logits
        seen = made.model(**ours).logits
        blind = made.model(**{name: _blank(array) for name, array in ours.items()}).logits
    torch.testing.assert_close(seen[there], expected[there], rtol=0, atol=1e-5)
    assert not torch.allclose(seen[there], blind[there], atol=1e-4)


def _blank(array: torch.Tensor) -> torch.Tensor:
    # Not zeros: some models take these for padding.
    return torch.ones_like(array) if array.is_floating_point() else array


def test_the_model_is_fed_each_distinct_picture_once(made: Made) -> None:
    texts = [made.text(None, "A", None), made.text(None)]
    pictures = {number: noise(*size, number) for number, size in enumerate(made.small_sizes(2, 9))}
    rows = [[0, 1], [1]]
    expanded = [
        made.expanded(text, [made.describe(pictures[number].shape[:2]) for number in row])
        for text, row in zip(texts, rows, strict=True)
    ]
    every = [_picture(made.family, str(number), pictures[number]) for row in rows for number in row]
    sheet = Sheet.of(every)
    inputs = model_inputs(made.family, expanded, sheet, pad="right")
    files = [[stored(pictures[number]) for number in row] for row in rows]
    theirs = {name: torch.from_numpy(array) for name, array in made.theirs.inputs(texts, files).items()}
    there = inputs["attention_mask"].bool()
    with torch.no_grad(), feeding(made.model, made.family, sheet) as consumed:
        once = made.model(**inputs).logits
    assert consumed.images == 3
    with torch.no_grad():
        expected = made.model(**theirs).logits
    torch.testing.assert_close(once[there], expected[there], rtol=0, atol=1e-5)


def _picture(family: Family, name: str, rgb: Any, dtype: Dtype = "uint8") -> Picture:
    height, width, _ = rgb.shape
    return Picture((name, family.recipe), family.layout(width, height).features, family.pixels([rgb], dtype))


# Names


def test_equal_files_make_equal_names(made: Made, tmp_path: Path) -> None:
    again = load_family(shutil.copytree(made.folder, tmp_path / "again"))
    for name in ("name", "fingerprint", "recipe", "placeholders", "forward"):
        assert getattr(again, name) == getattr(made.family, name)
    image = ImageRef("file:///a.png", "ab" * 32, "image/png", 70, 40, 1)
    assert again.describe(image) == made.family.describe(image)
    assert len(again.recipe) == len(again.fingerprint) == 32


def test_every_setting_changes_the_recipe_or_is_refused(made: Made, tmp_path: Path) -> None:
    """No number in the image processor's file is passed over: two recipes that agree mean the same pixels."""
    folder = shutil.copytree(made.folder, tmp_path / "changed")
    file, settings = _processor_file(folder)
    silent = []
    for path, value in _leaves(settings):
        if path[0] in HARMLESS or path[0] in made.case.ignored:
            continue
        _write(file, settings, path, _other(value))
        try:
            changed = load_family(folder)
        except CheckpointError:
            continue
        if changed.recipe == made.family.recipe:
            silent.append(".".join(map(str, path)))
    assert silent == []


def _processor_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / "processor_config.json"
    if file.exists() and "image_processor" in (settings := json.loads(file.read_text())):
        return file, settings["image_processor"]
    return folder / "preprocessor_config.json", json.loads((folder / "preprocessor_config.json").read_text())


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    for key, below in items or ():
        yield from _leaves(below, (*path, key))


_OTHER: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value * 1.5 + 0.01,
    str: lambda value: value + "Other",
    type(None): lambda _: True,
}


def _other(value: Any) -> Any:
    return _OTHER[type(value)](value)


def _write(file: Path, settings: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    changed = json.loads(json.dumps(settings))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "image_processor": changed} if "image_processor" in whole else changed))
