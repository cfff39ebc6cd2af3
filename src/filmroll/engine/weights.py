"""Weights on their way from trainer to engine: one folder for each version, checked before use.

    <folder>/step_<version>/model.safetensors
                            manifest.json      version, sha256 of the file, what is in it

A version appears whole or not at all. A reader looks at hash, names and shapes before a
tensor is loaded, so a wrong file leaves the model that it was meant for as it was. Where one process
checks and others load, as in vLLM, they agree on the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from filmroll.durable import whole_folder
from filmroll.errors import WeightsError

if TYPE_CHECKING:
    import torch

FILE = "model.safetensors"
MANIFEST = "manifest.json"
FORMAT = "filmroll-weights-1"


class TensorForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: list[int]
    dtype: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version's folder holds. `tied` names are other names of a tensor that is kept once."""

    format: str
    version: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    tensors: dict[str, TensorForm]
    tied: dict[str, str] = {}


def version_folder(folder: Path, version: int) -> Path:
    return folder / f"step_{version}"


def write_weights(
    tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]], folder: Path, version: int
) -> Path:
    """Keep the named tensors as `version` below `folder`; a version written again replaces the one before.

    Tensors that share all their memory, as tied weights do, are written once.
    """
    from safetensors.torch import save_file

    kept, tied = _without_ties(dict(tensors))
    place = version_folder(folder, version)
    with whole_folder(place) as draft:
        save_file(kept, draft / FILE)
        forms = {name: TensorForm(list(value.shape), _dtype(value)) for name, value in kept.items()}
        manifest = Manifest(FORMAT, version, _sha256(draft / FILE), forms, tied)
        (draft / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    return place


def read_weights(folder: Path, version: int, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The tensors of `version` below `folder`, under exactly the expected names and in the expected shapes.

    Anything else is a WeightsError, as from `check_weights`.
    """
    manifest = check_weights(folder, version, expected)
    loaded = load_checked(folder, version, manifest.sha256)
    return loaded | {name: loaded[first] for name, first in manifest.tied.items()}


def check_weights(folder: Path, version: int, expected: Mapping[str, tuple[int, ...]]) -> Manifest:
    """What is in `version` below `folder`, once it is known to be whole and just what is expected.

    Anything else (a missing or changed file, another version, a tensor too many or too few, another
    shape) is a WeightsError; no tensor is loaded.
    """
    place = version_folder(folder, version)
    try:
        manifest = _read_manifest(place, version)
        _check_names(manifest, expected)
        _check_file(place / FILE, manifest)
    except WeightsError as error:
        raise error.at(field="version") from None
    return manifest


def load_checked(folder: Path, version: int, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a version that was checked, tied ones once; a WeightsError if its manifest has changed since."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = version_folder(folder, version)
    if _read_manifest(place, version).sha256 != sha256:
        raise WeightsError(f"version {version} was written again after it was checked")
    try:
        loaded: dict[str, torch.Tensor] = load_file(place / FILE)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the file of version {version} cannot be read", private=str(error)) from None
    return loaded


def _without_ties(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that have memory of their own, and for each other name the one that it repeats."""
    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, value in tensors.items():
        memory = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and memory in first:
            tied[name] = first[memory]
            continue
        first[memory] = name
        # A copy: safetensors refuses different views of one memory.
        kept[name] = value.detach().to("cpu", copy=True).contiguous()
    return kept, tied


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _read_manifest(place: Path, version: int) -> Manifest:
    try:
        manifest = msgspec.json.decode((place / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise WeightsError(
            f"there are no weights of version {version}",
            remedy="A version can be used once its writer has finished it",
            private=str(error),
        ) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WeightsError(f"the manifest of version {version} cannot be read", private=str(error)) from None
    if manifest.format != FORMAT or manifest.version != version:
        raise WeightsError(
            f"the manifest says version {manifest.version} of {manifest.format[:64]!r}, "
            f"expected was version {version} of {FORMAT!r}"
        )
    return manifest


def _check_names(manifest: Manifest, expected: Mapping[str, tuple[int, ...]]) -> None:
    shapes = {name: tuple(form.shape) for name, form in manifest.tensors.items()}
    for name, first in manifest.tied.items():
        if first not in manifest.tensors or name in manifest.tensors:
            raise WeightsError(f"{_short(name)} is tied to {_short(first)}, which is no tensor of this version")
        shapes[name] = shapes[first]
    for what, names in (("lack", expected.keys() - shapes), ("have too many, first", shapes.keys() - expected)):
        if names:
            raise WeightsError(
                f"the weights {what} {_short(min(names))} ({len(names)} of {len(expected)} tensors)",
                remedy="They must come from the same architecture",
            )
    for name, shape in expected.items():
        if shapes[name] != tuple(shape):
            raise WeightsError(f"{_short(name)} has the shape {list(shapes[name])}, the model's is {list(shape)}")


def _check_file(path: Path, manifest: Manifest) -> None:
    """The file has the manifest's hash, and its own header lists what the manifest lists."""
    from safetensors import SafetensorError, safe_open

    try:
        if _sha256(path) != manifest.sha256:
            raise WeightsError(
                f"the file of version {manifest.version} does not have the hash in its manifest",
                remedy="It was changed or cut short after it was written; write the version again",
            )
        with safe_open(path, framework="pt") as file:
            listed = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 not a dict
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the file of version {manifest.version} cannot be read", private=str(error)) from None
    if listed != {name: form.shape for name, form in manifest.tensors.items()}:
        raise WeightsError(f"the file of version {manifest.version} does not hold what its manifest lists")


def _short(name: str) -> str:
    return repr(name[:200])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
