"""What a materializer tells about its work, to whoever counts it."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["hit", "absent", "stale", "damaged", "written", "swept", "failed"]
"""What became of a file of features: see docs/vllm.md."""


class Watch:
    """Counts nothing. Whoever does is told by any thread, and must be quick about it."""

    def found(self) -> None:
        """An image was at hand, or another request was at it."""

    def missed(self) -> None:
        """An image had to be made."""

    def kept(self, nbytes: int) -> None:
        """The cache holds so many bytes more, or fewer."""

    def read(self, nbytes: int, seconds: float) -> None:
        """Bytes came from the store, and their digest was compared."""

    def decoded(self, seconds: float) -> None:
        """A picture was decoded and cut into patches."""

    def features(self, outcome: Outcome, files: int = 1) -> None:
        """Something happened to files of features."""
