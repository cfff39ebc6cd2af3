"""Weights on their way from trainer to engine: one folder for each version, checked before use.

    <folder>/step_<version>/model.safetensors      or, where they are more than one file holds:
                            model-00001-of-00002.safetensors, ..., model.safetensors.index.json
                            manifest.json          version, sha256 of each file, what is in them

Files and index are as transformers writes them. A version appears whole or not at all. A reader looks at
hashes, names and shapes before a tensor is loaded, so a wrong file leaves the model that it was meant for
as it was. Where one process checks and others load, as in vLLM, they agree on the manifest's hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from filmroll.durable import whole_folder
from filmroll.errors import WeightsError

if TYPE_CHECKING:
    import torch

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "manifest.json"
FORMAT = "filmroll-weights-2"
SHARD_BYTES = 4 << 30
"""What a file holds unless the writer is told otherwise: it has so much in memory, and no more."""

_FileName = Annotated[str, msgspec.Meta(pattern=r"\Amodel(-\d{5}-of-\d{5})?\.safetensors\Z")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class TensorForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: list[int]
    dtype: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version's folder holds. `tied` names are other names of a tensor that is kept once."""

    format: str
    version: Annotated[int, msgspec.Meta(ge=0)]
    files: Annotated[dict[_FileName, _Sha256], msgspec.Meta(min_length=1)]
    tensors: dict[str, TensorForm]
    tied: dict[str, str] = {}

    @property
    def sha256(self) -> str:
        """Of all files: two versions with the same have the same tensors."""
        return hashlib.sha256(msgspec.json.encode(sorted(self.files.items()))).hexdigest()


def version_folder(folder: Path, version: int) -> Path:
    return folder / f"step_{version}"


def write_weights(
    tensors: Mapping[str, torch.Tensor], folder: Path, version: int, *, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Keep the named tensors as `version` below `folder`; a version written again replaces the one before.

    Tensors that share all their memory, as tied weights do, are written once.
    """
    kept, tied = without_ties(tensors)
    # A copy: safetensors refuses different views of one memory.
    copies = ((name, value.detach().to("cpu", copy=True).contiguous()) for name, value in kept.items())
    return write_in_turn(copies, folder, version, tied=tied, shard_bytes=shard_bytes)


def write_in_turn(
    tensors: Iterable[tuple[str, torch.Tensor]],
    folder: Path,
    version: int,
    *,
    tied: Mapping[str, str],
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """The same of tensors that come one after the other; at no time more of them are held than a file's."""
    from safetensors.torch import save_file

    place = version_folder(folder, version)
    with whole_folder(place) as draft:
        shards: list[dict[str, TensorForm]] = []
        for shard in _shards(tensors, shard_bytes):
            # With the metadata that transformers asks for.
            save_file(shard, draft / f"{len(shards)}", metadata={"format": "pt"})
            shards.append({name: TensorForm(list(value.shape), _dtype(value)) for name, value in shard.items()})
        names = _file_names(len(shards))
        for number, name in enumerate(names):
            (draft / f"{number}").rename(draft / name)
        if len(names) > 1:
            _write_json(draft / INDEX, _index(dict(zip(names, shards, strict=True)), draft))
        files = {name: _sha256(draft / name) for name in names}
        forms = {name: form for shard in shards for name, form in shard.items()}
        _write_json(draft / MANIFEST, Manifest(FORMAT, version, files, forms, dict(tied)))
    return place


def without_ties(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that have memory of their own, and for each other name the one that it repeats."""
    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, value in tensors.items():
        memory = _memory(value)
        if value.numel() and memory in first:
            tied[name] = first[memory]
        else:
            first[memory] = name
            kept[name] = value
    return kept, tied


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
        _check_files(place, manifest)
    except WeightsError as error:
        raise error.at(field="version") from None
    return manifest


def load_checked(folder: Path, version: int, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a version that was checked, tied ones once; a WeightsError if its manifest has changed since."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = version_folder(folder, version)
    manifest = _read_manifest(place, version)
    if manifest.sha256 != sha256:
        raise WeightsError(f"version {version} was written again after it was checked")
    loaded: dict[str, torch.Tensor] = {}
    for name in manifest.files:
        try:
            loaded |= load_file(place / name)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{name} of version {version} cannot be read", private=str(error)) from None
    return loaded


def _memory(value: torch.Tensor) -> tuple[object, ...]:
    """What two tensors have in common that are one."""
    if hasattr(value, "full_tensor"):
        # Parted among processes, where a part may be empty: one parameter under two names.
        return (id(value),)
    return (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def _shards(tensors: Iterable[tuple[str, torch.Tensor]], most: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in their order, as many at a time as fit into a file; a larger one has a file of its own."""
    shard: dict[str, torch.Tensor] = {}
    held = 0
    for name, value in tensors:
        if shard and held + value.nbytes > most:
            yield shard
            # Whoever took it has it still, and would hold two files' tensors.
            shard.clear()
            held = 0
        shard[name] = value
        held += value.nbytes
    yield shard


def _file_names(count: int) -> list[str]:
    return [FILE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _index(shards: Mapping[str, Iterable[str]], folder: Path) -> dict[str, Any]:
    """As transformers has it: which file a tensor is in."""
    size = sum((folder / name).stat().st_size for name in shards)
    names = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    return {"metadata": {"total_size": size}, "weight_map": names}


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))


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


def _check_files(place: Path, manifest: Manifest) -> None:
    """The files have the manifest's hashes, and their own headers list what the manifest lists."""
    from safetensors import SafetensorError, safe_open

    listed: dict[str, list[int]] = {}
    for name, sha256 in manifest.files.items():
        try:
            if _sha256(place / name) != sha256:
                raise WeightsError(
                    f"{name} of version {manifest.version} does not have the hash in its manifest",
                    remedy="It was changed or cut short after it was written; write the version again",
                )
            with safe_open(place / name, framework="pt") as file:
                listed |= {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 not a dict
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{name} of version {manifest.version} cannot be read", private=str(error)) from None
    if listed != {name: form.shape for name, form in manifest.tensors.items()}:
        raise WeightsError(f"the files of version {manifest.version} do not hold what its manifest lists")


def _short(name: str) -> str:
    return repr(name[:200])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
