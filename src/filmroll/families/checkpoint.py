"""Reading a model folder: config.json and the image processor's settings, strictly.

Whatever a family takes from a checkpoint passes through a `Section`, which says which key of which
file is wrong and what to do. A key that is absent and a key that is null mean the same, as they do
to transformers: the processor's own default.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filmroll.errors import CheckpointError
from filmroll.families.hub import model_folder

CONFIG = "config.json"
PROCESSOR = "processor_config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json", TOKENIZER_CONFIG)
ID = re.compile("[0-9]{1,9}")
COMPLETE = "Use the complete folder of a transformers checkpoint"


@dataclass(frozen=True, slots=True)
class Section:
    """One JSON object of a checkpoint, with getters that name the file and the key when they fail."""

    file: str
    values: dict[str, Any]
    path: str = ""

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer of at least `least`."""
        value = self._value(key, default)
        if type(value) is not int or value < least:
            raise self._malformed(key, value, f"a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not _is_number(value):
            raise self._malformed(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if type(value) is not bool:
            raise self._malformed(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._malformed(key, value, "a text")
        return value

    def channels(self, key: str, default: tuple[float, float, float] | None = None) -> tuple[float, float, float]:
        """Three numbers, one for each of red, green and blue; one number stands for all three."""
        value = self._value(key, default)
        values = [value] * 3 if _is_number(value) else value
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
            raise self._malformed(key, value, "a list of three finite numbers")
        red, green, blue = values
        return float(red), float(green), float(blue)

    def pair(self, key: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """Height and width: an object of the two, a list of the two, or one number for both."""
        value = self._value(key, default)
        sides = (value.get("height"), value.get("width")) if isinstance(value, dict) else value
        sides = (sides, sides) if type(sides) is int else sides
        if (
            not isinstance(sides, list | tuple)
            or len(sides) != 2
            or any(type(one) is not int or one < 1 for one in sides)
        ):
            raise self._malformed(key, value, "a height and a width, in whole numbers of at least 1")
        return sides[0], sides[1]

    def section(self, key: str, default: dict[str, Any] | None = None) -> Section:
        """The object below `key`."""
        value = self._value(key, default)
        if not isinstance(value, dict):
            raise self._malformed(key, value, "an object")
        return Section(self.file, value, f"{self.path}{key}.")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.file} lacks {self.path}{key}", remedy=COMPLETE)
        return value

    def _malformed(self, key: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: {self.path}{key} is {str(value)[:64]!r}", remedy=f"It must be {wanted}; correct the file"
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What families read of a model folder."""

    folder: Path
    config: Section
    processor: Section
    """The image processor's settings."""
    joint: Section
    """processor_config.json: the settings of the processor of images and text; empty where there is no such file."""
    chat_template: str
    """The text of the chat template, empty where the checkpoint has none."""

    def asked(self, more: dict[str, Any]) -> Checkpoint:
        """The same with more settings of the image processor."""
        return replace(self, processor=replace(self.processor, values=self.processor.values | more))

    @property
    def model_type(self) -> str:
        return self.config.text("model_type")

    def token(self, text: str) -> int:
        """The id of a token that the tokenizer's files add by this spelling."""
        for added_tokens in (_listed, _defined):
            for number, token in added_tokens(self.folder):
                if isinstance(token, dict) and token.get("content") == text and ID.fullmatch(str(number)):
                    return int(str(number))
        raise CheckpointError(
            f"neither {TOKENIZER_CONFIG} nor {TOKENIZER} has the token {text!r}",
            remedy=f"{COMPLETE} of a model that sees",
            private=str(self.folder),
        )


def read_checkpoint(model: str | Path) -> Checkpoint:
    """The checkpoint of that folder or name; anything missing or malformed is a CheckpointError."""
    folder = model_folder(model)
    config = read_section(folder, CONFIG)
    if config is None:
        raise CheckpointError(f"the model folder has no {CONFIG}", remedy=COMPLETE, private=str(folder))
    joint = read_section(folder, PROCESSOR) or Section(PROCESSOR, {})
    return Checkpoint(folder, config, _image_processor(folder, joint), joint, _chat_template(folder))


def _image_processor(folder: Path, joint: Section) -> Section:
    """The image processor's settings, from where transformers looks for them first."""
    if "image_processor" in joint.values:
        return joint.section("image_processor")
    alone = read_section(folder, IMAGE_PROCESSOR)
    if alone is None:
        raise CheckpointError(
            f"the model folder has neither {IMAGE_PROCESSOR} nor an image_processor in {PROCESSOR}",
            remedy=f"{COMPLETE} of a model that sees",
            private=str(folder),
        )
    return alone


def _chat_template(folder: Path) -> str:
    for name in TEMPLATES:
        if name.endswith(".jinja"):
            text = _text(folder, name)
        else:
            section = read_section(folder, name)
            text = section.values.get("chat_template") if section else None
        if isinstance(text, str):
            return text
    return ""


def _listed(folder: Path) -> Iterator[tuple[object, object]]:
    """Ids and tokens from the small file that most released checkpoints list them in."""
    settings = read_section(folder, TOKENIZER_CONFIG) or Section(TOKENIZER_CONFIG, {})
    yield from settings.section("added_tokens_decoder", {}).values.items()


def _defined(folder: Path) -> Iterator[tuple[object, object]]:
    """Ids and tokens from the tokenizer itself, which has tens of megabytes."""
    tokens = (read_section(folder, TOKENIZER) or Section(TOKENIZER, {})).values.get("added_tokens")
    for token in tokens if isinstance(tokens, list) else []:
        yield (token.get("id") if isinstance(token, dict) else None), token


def read_section(folder: Path, name: str) -> Section | None:
    """The object in one JSON file of a model folder; None where there is no such file."""
    text = _text(folder, name)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is not valid JSON", remedy="Fetch the file again", private=f"{folder / name}: {error}"
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{name} holds no JSON object", remedy="Fetch the file again", private=str(folder / name))
    return Section(name, values)


def _text(folder: Path, name: str) -> str | None:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise CheckpointError(
            f"{name} cannot be read", remedy="Fetch the file again", private=f"{folder / name}: {error}"
        ) from None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
