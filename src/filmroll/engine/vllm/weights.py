"""Updates of the weights that one vLLM server serves: checked first, one at a time, between requests.

A version is checked while the engine samples; only then is the engine paused, and it is resumed
whatever happens. What cannot be loaded although it was checked is undone.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filmroll.engine.vllm.inside.answers import with_version
from filmroll.engine.vllm.inside.configuration import BACKEND
from filmroll.engine.vllm.inside.server import Server
from filmroll.engine.vllm.outline import outline, shapes, ties
from filmroll.engine.vllm.settings import read_settings
from filmroll.engine.weights import Manifest, check_weights, load_checked
from filmroll.errors import ConfigError, EngineError, EngineUnavailableError, WeightsError

if TYPE_CHECKING:
    from filmroll.engine.vllm.inside.transfer import Checked, Engine

log = logging.getLogger(__name__)


def weights_of(server: Server) -> Weights | None:
    """What updates the server's weights; None if it was told of no folder to take them from."""
    folder = read_settings(server.settings).weights
    if folder is None:
        return None
    if server.weight_transfer != BACKEND:
        raise ConfigError(
            f"weights are to be taken from a folder, but vLLM's weight transfer backend is {server.weight_transfer!r}",
            remedy=f"""Start it with --weight-transfer-config '{{"backend": "{BACKEND}"}}'""",
        )
    if server.api_servers != 1:
        raise ConfigError(
            f"weights are to be taken from a folder, but there are {server.api_servers} API servers",
            remedy="Start it with --api-server-count 1: updates must come one after the other",
        )
    if server.quantization is not None:
        raise ConfigError(
            f"weights are to be taken from a folder, but vLLM's are quantized ({server.quantization})",
            remedy="Serve the checkpoint that the trainer started with",
        )
    bare = outline(server.model)
    # Not above: this is vLLM's own.
    from filmroll.engine.vllm.inside.transfer import CHECKPOINT, Engine

    tied = ties(bare) if server.tied else {}
    return Weights(Engine(server.engine), Path(folder), CHECKPOINT, shapes(bare), tied)


class Weights:
    """To be made, and used, on the server's event loop."""

    def __init__(
        self, engine: Engine, folder: Path, loaded: Checked, expected: dict[str, tuple[int, ...]], tied: dict[str, str]
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._loaded = loaded
        """What the engine has."""
        self._expected = expected
        self._tied = tied
        """Names of which vLLM has one tensor for two."""
        self._updating = asyncio.Lock()
        self._under_way: set[asyncio.Task[int]] = set()
        # Sent before the first request can be: the checkpoint is version 0, as in the embedded engine.
        self._named = asyncio.get_running_loop().create_task(engine.name(0))

    async def version(self) -> int:
        """The version of the weights in use; 0 is the checkpoint itself."""
        await self._named
        return await self._engine.version()

    def named(self, answer: Any) -> Any:
        """vLLM's answer, which says what sampled it; 0.31 does not by itself.

        It is what is in use when the answer ends: nothing is loaded before what is being sampled has ended.
        """
        return with_version(answer, self._loaded.version)

    async def update(self, version: int) -> int:
        """Serve the weights that the trainer wrote as `version`; any version, older ones too.

        Once begun it goes on, even if nobody waits for it any more. A WeightsError leaves the old
        weights in use, and so does an EngineError.
        """
        task = asyncio.create_task(self._update(version))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _update(self, version: int) -> int:
        from filmroll.engine.vllm.inside.transfer import Checked

        await self._named
        async with self._updating:
            manifest = await asyncio.to_thread(self._check, version)
            checked = Checked(version, manifest.sha256)
            if checked != self._loaded:
                async with self._engine.paused():
                    await self._engine.forget()
                    await self._load(checked)
        return version

    def _check(self, version: int) -> Manifest:
        manifest = check_weights(self._folder, version, self._expected)
        apart = [(name, first) for name, first in self._tied.items() if {name, first} <= manifest.tensors.keys()]
        if apart:
            tensors = load_checked(self._folder, version, manifest.sha256)
            for name, first in apart:
                if not tensors[name].equal(tensors[first]):
                    raise WeightsError(
                        f"{name} and {first} are one tensor in the model that is served, and two in version {version}",
                        remedy="Train the model with its embeddings tied, as its configuration says",
                        field="version",
                    )
        return manifest

    async def _load(self, checked: Checked) -> None:
        try:
            await self._engine.load(checked)
        except Exception as error:
            log.exception("version %d was checked, but vLLM could not load it", checked.version)
            await self._undo()
            raise EngineError(
                f"vLLM could not load version {checked.version}; it serves the weights that it had",
                remedy="Its log says why",
                field="version",
            ) from error
        self._loaded = checked

    async def _undo(self) -> None:
        try:
            await self._engine.load(self._loaded)
        except Exception as error:
            log.critical("the weights before cannot be loaded either: what the engine has is of no version")
            self._engine.end()
            raise EngineUnavailableError(
                "vLLM could load neither this version nor the one before; the server ends", remedy="Start it again"
            ) from error
