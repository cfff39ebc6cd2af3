"""Whether a store fetches images from URLs, and how far it goes for one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from filmroll.errors import ConfigError

PORTS = {"http": 80, "https": 443}
"""Of the schemes that can be fetched, the ports that are public."""


@dataclass(frozen=True, slots=True)
class HttpSources:
    """That a store may fetch images from URLs, and how far it goes for one.

    `max_seconds` is for all of it: looking up names, redirects, the last byte. `private_addresses` allows every
    address and port that this machine reaches, such as those of its own network; without it only public addresses
    are connected to, at the schemes' own ports, so that URLs of strangers reach nothing inside.
    """

    max_seconds: float = 20.0
    max_redirects: int = 3
    private_addresses: bool = False
    schemes: tuple[str, ...] = ("https",)

    def __post_init__(self) -> None:
        if not (self.max_seconds > 0 and math.isfinite(self.max_seconds)):
            raise ConfigError(f"max_seconds is {self.max_seconds}", remedy="Name a number of seconds above 0")
        if self.max_redirects < 0:
            raise ConfigError(f"max_redirects is {self.max_redirects}", remedy="Name 0 or more")
        if not self.schemes or not set(self.schemes) <= PORTS.keys():
            raise ConfigError(f"the schemes are {self.schemes!r}", remedy="Name https, or http, or both")
