"""An engine of a run as a process, of either kind: how it is started, and how it is known that it can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from shutil import disk_usage
from typing import Self

from filmroll.durable import FULL_STATUS, tells_full
from filmroll.engine.vllm.launch import VllmServer, check_flags, find_vllm
from filmroll.engine.vllm.settings import Settings
from filmroll.errors import RunError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.engine_config import VllmEngineConfig
from filmroll.run.members.roles import MiB, model_dir, model_name
from filmroll.run.network import own_address
from filmroll.run.processes.child import leashed
from filmroll.run.processes.health import free_port, until_healthy, url_of
from filmroll.run.processes.launch import Process, announce, role_command

VLLM_PATIENCE = 1800.0
"""Seconds: a large model is read, and compiled for."""


async def start_engine(
    name: str, run: RunDirectory, config: Config, seed: int, variables: Mapping[str, str]
) -> Process:
    """Start an engine. What it samples follows from the seed, so no two of a run should have the same."""
    if isinstance(config.engine, VllmEngineConfig):
        return await VllmProcess.begin(name, run, vllm_server(run, config, config.engine, seed), variables)
    return await Process.start(name, [*role_command("engine", run, name), "--seed", str(seed)], run, variables)


def vllm_server(run: RunDirectory, config: Config, engine: VllmEngineConfig, seed: int) -> VllmServer:
    """vLLM's server as the run's configuration asks for it, at a port that is free now."""
    check_flags(engine.flags, engine.gpus)
    chosen, host = config.multimodal, own_address(config.cluster.network)
    told = Settings(
        store=run.store_url(config),
        store_cache=chosen.cache or None,
        store_cache_bytes=chosen.cache_mb * MiB,
        cache_bytes=engine.cache_mb * MiB,
        weights=str(run.weights),
        only_references=engine.only_references,
        max_bytes=chosen.max_bytes,
        max_pixels=chosen.max_pixels,
        max_side=chosen.max_side,
    )
    return VllmServer(
        executable=find_vllm(engine.command),
        model=str(model_dir(run, config)),
        name=model_name(config),
        host=host,
        port=free_port(host),
        told=told,
        seed=seed,
        gpus=engine.gpus,
        flags=("--max-model-len", str(engine.max_model_len), "--max-num-seqs", str(engine.max_batch), *engine.flags),
    )


class VllmProcess(Process):
    """vLLM's server. It announces nothing, so it is asked whether it can be spoken to.

    Nor has it a status for a full disk, so its log is: whether it tells of one, or is on one itself.
    """

    url: str

    @classmethod
    async def begin(cls, name: str, run: RunDirectory, server: VllmServer, variables: Mapping[str, str]) -> Self:
        process = await cls.start(name, leashed(server.command()), run, {**server.environment(), **variables})
        process.url = url_of(server.host, server.port)
        return process

    async def _exit(self) -> int:
        status = await super()._exit()
        # What a signal has ended did not fail.
        failed = status >= 0
        return FULL_STATUS if failed and (tells_full(self.said()) or not disk_usage(self.log).free) else status

    async def endpoint(self) -> str:
        try:
            async with asyncio.timeout(VLLM_PATIENCE):
                await self.watch(until_healthy(self.url))
        except TimeoutError:
            raise RunError(
                f"process {self.name} is not ready after {VLLM_PATIENCE:.0f} s", private=self.last_words()
            ) from None
        announce(self.run, self.name, self.url, self.pid)
        return self.url
