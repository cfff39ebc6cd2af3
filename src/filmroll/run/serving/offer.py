"""What `filmroll serve` is asked to serve: checked before anything is started, and made into servers to start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filmroll.engine.vllm.launch import VllmServer, check_flags, find_vllm
from filmroll.engine.vllm.settings import Settings
from filmroll.errors import ConfigError
from filmroll.families import load_family
from filmroll.run.processes.gpus import SEEN, Claim, gpu_variables
from filmroll.run.processes.health import free_port, url_of
from filmroll.run.serving.serve import Replica
from filmroll.store import Store, open_store
from filmroll.store.nowhere import URL as INLINE

_TOO_FEW = f"Start fewer --replicas, or give each fewer --gpus; {SEEN} says which are seen"


@dataclass(frozen=True, slots=True)
class Offer:
    """A model under a name, where its images and its new weights are, and at which ports of which host."""

    model: str
    name: str
    store: str
    store_cache: str
    weights: Path | None
    host: str
    ports: Sequence[int]

    def check(self) -> None:
        """An error for what no engine could serve."""
        load_family(self.model)
        self.open_store()
        for what, place in (("store", self.store), ("weights", str(self.weights or ""))):
            if place and "://" not in place and not Path(place).expanduser().is_dir():
                raise ConfigError(f"--{what} {place}: there is no such folder")

    def open_store(self) -> Store:
        return open_store(self.store or INLINE, cache=self.store_cache or None)

    def serve_embedded(self, ready: Callable[[str], None], *, threads: int, device: str) -> None:
        """Serve with the embedded engine in this process, at the first port, until it is told to end."""
        from filmroll.engine.embedded.server import serve

        serve(
            Path(self.model),
            self.open_store(),
            self.weights,
            host=self.host,
            port=self.ports[0],
            name=self.name,
            on_ready=ready,
            threads=threads,
            device=device,
        )

    def embedded(self, *, threads: int, device: str) -> list[Replica]:
        """A process of this very command for each port."""
        said = {
            "--name": self.name,
            "--store": self.store,
            "--store-cache": self.store_cache,
            "--weights": str(self.weights or ""),
            "--host": self.host,
            "--threads": str(threads),
            "--device": device,
        }
        flags = [word for flag, value in said.items() if value for word in (flag, value)]
        command = [sys.executable, "-m", "filmroll", "serve", self.model, *flags]
        return [
            Replica(number, [*command, "--port", str(port)], url_of(self.host, port), shown)
            for number, (port, shown) in enumerate(zip(self.ports, self._gpus(Claim.of(device)), strict=True))
        ]

    def vllm(self, command: str, flags: Sequence[str], *, gpus: int, only_references: bool) -> list[Replica]:
        """A server of vLLM's for each port. Each has a seed of its own, or all would sample the same."""
        check_flags(flags, gpus)
        executable = find_vllm(command)
        told = Settings(
            store=self.store or INLINE,
            store_cache=self.store_cache or None,
            weights=None if self.weights is None else str(self.weights),
            only_references=only_references,
        )
        servers = [
            VllmServer(executable, self.model, self.name, self.host, port, told, seed=number, gpus=gpus, flags=flags)
            for number, port in enumerate(self.ports)
        ]
        dealt = self._gpus(Claim(gpus, does_without=True))
        return [
            Replica(number, server.command(), url_of(self.host, server.port), {**server.environment(), **shown})
            for number, (server, shown) in enumerate(zip(servers, dealt, strict=True))
        ]

    def _gpus(self, claim: Claim) -> list[dict[str, str]]:
        """What shows each replica its GPUs."""
        replicas = [f"replica {number}" for number in range(len(self.ports))]
        return list(gpu_variables(dict.fromkeys(replicas, claim), _TOO_FEW).values())


def take_ports(host: str, port: int, replicas: int) -> list[int]:
    """The ports of so many servers, in a row from this one, or any if it is 0; a ConfigError where one is taken."""
    if port == 0:
        return [free_port(host) for _ in range(replicas)]
    ports = [port + number for number in range(replicas)]
    for one in ports:
        try:
            free_port(host, one)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"nothing can be served at port {one} of {host}: {error}", remedy="Choose another --port, or 0 for any"
            ) from None
    return ports
