"""How new weights get into vLLM: the calls that an API server makes, and what a worker does then.

Imports vllm, so only a process of vLLM's own imports this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.parallel_state import get_world_group
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
)
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from filmroll.engine.vllm.inside.configuration import BACKEND, model_name, told
from filmroll.engine.vllm.outline import in_checkpoint_names, outline
from filmroll.engine.vllm.settings import read_settings
from filmroll.engine.weights import load_checked
from filmroll.errors import ConfigError, EngineUnavailableError, WeightsError

log = logging.getLogger(__name__)
_FAREWELL = 5.0
"""Seconds in which a server that has to end may answer whom it can."""


@dataclass
class Checked(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A version whose file was checked, by the hash that it had then."""

    version: int
    sha256: str


CHECKPOINT = Checked(0, "")
"""What a server starts with."""


class Engine:
    """vLLM's engine, as far as new weights concern it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._ended = False

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is sampled meanwhile: requests under way end before, on the old weights, later ones wait."""
        try:
            await self._client.pause_generation(mode="wait", clear_cache=False)
            yield
        finally:
            if not self._ended:
                await self._client.resume_generation()

    async def forget(self) -> None:
        """Drop what was computed with the weights in use: keys and values, and images' features; pixels stay."""
        if not await self._client.reset_prefix_cache(reset_connector=True):
            raise EngineUnavailableError(
                "vLLM still holds keys and values of the old weights", remedy="Ask for the update again"
            )
        await self._client.reset_encoder_cache()

    async def load(self, checked: Checked) -> None:
        """Have every worker take these weights, and name them in answers from now on."""
        await self._client.start_weight_update()
        try:
            await self._client.update_weights(request=WeightTransferUpdateRequest(update_info=asdict(checked)))
        except Exception:
            # Where one of several workers failed, the others still wait for more.
            with suppress(Exception):
                await self._client.finish_weight_update()
            raise
        await self._client.finish_weight_update(str(checked.version))

    def end(self) -> None:
        """Have the server end, and nothing be sampled any more."""
        self._ended = True
        os.kill(os.getpid(), signal.SIGTERM)
        # By itself it would wait for those who wait for its answers, for as long as they do.
        asyncio.get_running_loop().call_later(_FAREWELL, os._exit, 1)

    async def name(self, version: int) -> None:
        """Call the weights in use this in answers."""
        await self._client.update_weight_version(str(version))

    async def version(self) -> int:
        """What answers call the weights in use; -1 if somebody else gave them another name."""
        label = await self._client.get_weight_version()
        return int(label) if label.isdecimal() else -1


@dataclass
class Nothing(WeightTransferInitInfo):  # type: ignore[misc]
    """There is nobody to connect to."""


class FolderTransfer(WeightTransferEngine):  # type: ignore[misc]
    """In each worker: takes a version's tensors from the folder, under the checkpoint's names."""

    init_info_cls = Nothing
    update_info_cls = Checked
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        folder = read_settings(told(vllm_config)).weights
        if folder is None:
            raise ConfigError(
                f"the weight transfer backend is {BACKEND!r}, but no folder of weights is named",
                remedy="""Name it: --additional-config '{"filmroll": {"weights": "/path"}}'""",
            )
        self._folder = Path(folder)
        self._outline = outline(model_name(vllm_config))

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """The folder is known from the start."""

    def start_weight_update(self) -> None:
        """Nothing is changed before the tensors are at hand."""

    def receive_weights(self, update_info: Checked) -> None:
        """Take them, or fail wherever one of the workers fails.

        Of an engine's workers the last one says so, and no other: vLLM reads their answers in order up to the
        first error, and would take those behind it for answers to its next calls.
        """
        error: Exception | None = None
        try:
            self._take(update_info)
        except Exception as caught:
            error = caught
            log.exception("this worker could not take version %d", update_info.version)
        world = get_world_group()
        failed = torch.tensor(int(error is not None))
        if world.world_size > 1:
            torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX, group=world.cpu_group)
        if failed and (world.rank_in_group + 1) % self.parallel_config.world_size == 0:
            raise error or WeightsError("another worker could not take the weights", remedy="Its log says why")

    def _take(self, update_info: Checked) -> None:
        weights = self._checkpoint() if update_info == CHECKPOINT else self._version(update_info)
        wanted = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        try:
            loaded = self.model.load_weights(weights)
        finally:
            # A model that took them halfway has to be whole in form again, to take others.
            finalize_layerwise_reload(self.model, self.model_config)
            _process_tied(self.model)
        if loaded is not None and wanted - loaded:
            missing = min(wanted - loaded)
            raise WeightsError(f"vLLM's {missing} got no value ({len(wanted - loaded)} of {len(wanted)} parameters)")

    def _version(self, checked: Checked) -> Iterable[tuple[str, torch.Tensor]]:
        tensors = load_checked(self._folder, checked.version, checked.sha256)
        return in_checkpoint_names(self._outline, tensors).items()

    def _checkpoint(self) -> Iterable[tuple[str, torch.Tensor]]:
        loader = get_model_loader(self.vllm_config.load_config)
        weights: Iterable[tuple[str, torch.Tensor]] = loader.get_all_weights(self.model_config, self.model)
        return weights

    def finish_weight_update(self) -> None:
        """All was done when the tensors came."""

    def shutdown(self) -> None:
        """Nothing is held."""


def _process_tied(model: torch.nn.Module) -> None:
    """Have every layer that shares a tensor with another see what is in it now.

    Reloading processes the layer through which such a tensor is loaded. The others have the new values
    as well, but what was made of the old ones: on a CPU, a tied head went on with its packed copy.
    """
    owners: dict[int, list[torch.nn.Module]] = {}
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(layer)
    for layers in owners.values():
        for layer in layers if len(layers) > 1 else ():
            method: Any = getattr(layer, "quant_method", None)
            if method is not None:
                method.process_weights_after_loading(layer)
