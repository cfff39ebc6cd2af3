"""Which GPUs each process sees: they are dealt out before anything is started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from filmroll.errors import ConfigError

SEEN = "CUDA_VISIBLE_DEVICES"
"""The variable by which a process is told which GPUs there are."""
_ASKED = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
_PATIENCE = 60.0

G = TypeVar("G")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process wants: so many GPUs; or the one of this number among all, which its device names."""

    count: int = 0
    named: int | None = None
    does_without: bool = False
    """Whether it can be started where there are none at all."""

    @classmethod
    def of(cls, device: str, count: int = 1) -> Claim:
        """That of a process whose model is on this device, or on so many of them."""
        kind, _, number = device.partition(":")
        if kind != "cuda":
            return cls()
        return cls(named=int(number)) if number else cls(count)


class Deck(Generic[G]):
    """The GPUs of one machine. Each that claims some has them for itself, unless they are shared.

    `where`, `remedy` and the reason why there are none are for the error when they do not suffice.
    """

    def __init__(self, gpus: Sequence[G], where: str, remedy: str, *, shared: bool = False, why_none: str = "") -> None:
        self._gpus = gpus
        self._where = where
        self._remedy = remedy
        self._shared = shared
        self._why_none = why_none
        self._dealt: dict[str, list[int]] = {}

    def deal(self, name: str, claim: Claim) -> tuple[G, ...] | None:
        """What this process is to see; None where it is to see whatever there is."""
        if claim.named is not None:
            self._leave(name, claim.named)
            return None
        if not claim.count or (claim.does_without and not self._gpus):
            return None
        holders = [len(self._holders(number)) for number in range(len(self._gpus))]
        free = sorted((held, number) for number, held in enumerate(holders) if self._shared or not held)
        if len(free) < claim.count:
            raise self._short(f"{name} is to have {_gpus(claim.count)}")
        chosen = sorted(number for _, number in free[: claim.count])
        self._dealt[name] = chosen
        return tuple(self._gpus[number] for number in chosen)

    def _leave(self, name: str, number: int) -> None:
        """It sees all of them and takes this one, which nobody else is dealt."""
        if number >= len(self._gpus):
            raise self._short(f"{name} is to be on cuda:{number}")
        self._dealt[name] = [number]

    def _holders(self, number: int) -> list[str]:
        return [name for name, numbers in self._dealt.items() if number in numbers]

    def _short(self, wish: str) -> ConfigError:
        if not self._gpus:
            return ConfigError(
                f"{wish}, and {self._where} has none: {self._why_none}",
                remedy="Take the device cpu, or start it where there are GPUs",
            )
        taken = "; ".join(f"{holder} has {', '.join(map(str, numbers))}" for holder, numbers in self._dealt.items())
        whose = f" ({taken})" if taken and not self._shared else ""
        return ConfigError(f"{wish}, and {self._where} has {_gpus(len(self._gpus))}{whose}", remedy=self._remedy)


@dataclass(frozen=True, slots=True)
class Visible:
    """The GPUs that processes started from here can be shown, as `SEEN` names them."""

    names: tuple[str, ...]
    numbered: bool = False
    """Whether they are numbers in the order of the bus, in which CUDA does not count by itself."""
    reason: str = ""
    """Why there are none."""

    def variables(self, dealt: Sequence[str] | None) -> dict[str, str]:
        """What shows a process those that it was dealt."""
        if dealt is None:
            return {}
        return {SEEN: ",".join(dealt)} | ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if self.numbered else {})


def visible_gpus(environment: Mapping[str, str]) -> Visible:
    """Those that the environment leaves visible, or all that the driver knows of."""
    said = environment.get(SEEN)
    if said is not None:
        names = [name.strip() for name in said.split(",")]
        # CUDA reads up to the first that is none.
        end = next((at for at, name in enumerate(names) if not name or name == "-1"), len(names))
        return Visible(tuple(names[:end]), reason=f"{SEEN} is {said!r}")
    try:
        done = subprocess.run(_ASKED, capture_output=True, text=True, timeout=_PATIENCE, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        missing = isinstance(error, FileNotFoundError)
        return Visible((), reason="there is no nvidia-smi" if missing else f"nvidia-smi: {error}")
    if done.returncode:
        return Visible((), reason=f"nvidia-smi says: {' '.join((done.stdout + done.stderr).split())}")
    numbers = tuple(line.strip() for line in done.stdout.splitlines() if line.strip().isdigit())
    return Visible(numbers, numbered=True, reason="nvidia-smi lists none")


def gpu_variables(
    claims: Mapping[str, Claim], remedy: str, environment: Mapping[str, str] = os.environ, *, shared: bool = False
) -> dict[str, dict[str, str]]:
    """What shows each process the GPUs of this machine that it is dealt; a ConfigError where there are too few."""
    if not any(claim.count or claim.named is not None for claim in claims.values()):
        return {name: {} for name in claims}
    seen = visible_gpus(environment)
    deck = Deck(seen.names, "this machine", remedy, shared=shared, why_none=seen.reason)
    # Who names a GPU comes first: nobody else is to be dealt it.
    in_order = sorted(claims, key=lambda name: claims[name].named is None)
    shown = {name: seen.variables(deck.deal(name, claims[name])) for name in in_order}
    return {name: shown[name] for name in claims}


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
