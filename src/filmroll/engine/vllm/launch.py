"""The command that starts vLLM's own server so that it takes references, and the environment it needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from pathlib import Path

import msgspec

from filmroll.engine.vllm.inside.configuration import BACKEND, CONNECTOR
from filmroll.engine.vllm.settings import Settings
from filmroll.errors import ConfigError
from filmroll.families.hub import name_and_revision

OURS = (
    *("--host", "--port", "--served-model-name", "--additional-config", "--enable-scale-out", "--logprobs-mode"),
    *("--weight-transfer-config", "--tensor-parallel-size", "-tp"),
)
"""Flags that are filmroll's to give."""
_APART = ("--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")
"""Flags that say among how many GPUs a model's layers are parted, or its requests."""


@dataclass(frozen=True, slots=True)
class VllmServer:
    """One server to start: where vLLM is, what it serves, and what it is told for filmroll.

    `flags` are further ones of `vllm serve`, and come last. What these leave of the GPUs share each layer.
    """

    executable: str
    model: str
    name: str
    host: str
    port: int
    told: Settings
    seed: int = 0
    gpus: int = 1
    flags: Sequence[str] = ()

    def command(self) -> list[str]:
        model, revision = name_and_revision(self.model)
        return [
            *(self.executable, "serve", model, "--served-model-name", self.name),
            *(("--revision", revision) if revision else ()),
            *("--host", self.host, "--port", str(self.port), "--seed", str(self.seed % 2**32)),
            *("--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"),
            *("--additional-config", json.dumps({"filmroll": msgspec.to_builtins(self.told)})),
            *(("--weight-transfer-config", json.dumps({"backend": BACKEND})) if self.told.weights else ()),
            *_sharing_layers(self.gpus, self.flags),
            *self.flags,
        ]

    def environment(self) -> dict[str, str]:
        """Variables to add: vLLM finds its own tools as if its environment were activated."""
        places = os.pathsep.join((str(Path(self.executable).parent), os.environ.get("PATH", os.defpath)))
        return {
            "PATH": places,
            "VLLM_MEDIA_CONNECTOR": CONNECTOR,
            # A client that comes back after a training step finds its connections open.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        }


def find_vllm(command: str) -> str:
    """The path of the vllm executable, or a ConfigError."""
    found = shutil.which(Path(command).expanduser())
    if found is None:
        raise ConfigError(
            f"there is no vLLM to start: {command!r} is not found",
            remedy="Install filmroll[vllm], or name the vllm executable of the environment that has it",
        )
    return str(Path(found).absolute())


def check_flags(flags: Sequence[str], gpus: int = 1) -> None:
    """A ConfigError for flags that would undo what makes vLLM take references, or do not fit so many GPUs."""
    for name, _ in _read(flags):
        if name in OURS:
            raise ConfigError(f"{name} is given by filmroll", remedy="Leave it out of vLLM's flags")
    _sharing_layers(gpus, flags)


def _sharing_layers(gpus: int, flags: Sequence[str]) -> tuple[str, ...]:
    """The flag for those GPUs that have a part of every layer."""
    apart = prod(max(1, int(value)) for name, value in _read(flags) if name in _APART and value.isdecimal())
    if gpus % apart:
        raise ConfigError(
            f"vLLM's flags part a model or its requests among {apart} GPUs, and each engine has {gpus}",
            remedy="Give it as many, or a multiple: the others share each layer",
        )
    return ("--tensor-parallel-size", str(gpus // apart)) if gpus > apart else ()


def _read(flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each flag by its name with hyphens, and what it is set to."""
    for flag, following in zip_longest(flags, flags[1:], fillvalue=""):
        name, equals, value = flag.partition("=")
        if name.startswith("-"):
            yield name.replace("_", "-"), value if equals else following
