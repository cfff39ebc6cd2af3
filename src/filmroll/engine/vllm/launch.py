"""The command that starts vLLM's own server so that it takes references, and the environment it needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from filmroll.engine.vllm.inside.configuration import BACKEND, CONNECTOR
from filmroll.engine.vllm.settings import Settings
from filmroll.errors import ConfigError
from filmroll.families.hub import name_and_revision

OURS = (
    *("--host", "--port", "--served-model-name", "--additional-config", "--enable-scale-out", "--logprobs-mode"),
    "--weight-transfer-config",
)
"""Flags that are filmroll's to give."""


@dataclass(frozen=True, slots=True)
class VllmServer:
    """One server to start: where vLLM is, what it serves, and what it is told for filmroll.

    `flags` are further ones of `vllm serve`, and come last.
    """

    executable: str
    model: str
    name: str
    host: str
    port: int
    told: Settings
    seed: int = 0
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


def check_flags(flags: Sequence[str]) -> None:
    """A ConfigError for flags that would undo what makes vLLM take references."""
    for flag in flags:
        name = flag.partition("=")[0]
        if name.replace("_", "-") in OURS:
            raise ConfigError(f"{name} is given by filmroll", remedy="Leave it out of vLLM's flags")
