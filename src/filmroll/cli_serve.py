"""`filmroll serve`: engines without a run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from filmroll.errors import ConfigError

MORE_FLAGS = {"allow_extra_args": True}


class Kind(StrEnum):
    EMBEDDED = "embedded"
    VLLM = "vllm"


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder, or a name on the hub: org/name or org/name@revision.")],
    engine: Annotated[Kind, typer.Option(help="filmroll's own engine, or vLLM's server.")] = Kind.EMBEDDED,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="How many, at ports in a row.")] = 1,
    store: Annotated[
        str, typer.Option(help="Where images are: a folder or a bucket's URL. Without it only inline images are read.")
    ] = "",
    store_cache: Annotated[str, typer.Option(help="A local folder that keeps what is read from a bucket.")] = "",
    weights: Annotated[
        Path | None, typer.Option(help="The folder in which a trainer writes versions, for update_weights.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The first replica's port; 0 for any.")] = 8000,
    name: Annotated[str, typer.Option(help="What requests call the model; without it the model's last part.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each embedded engine.")] = 1,
    device: Annotated[
        str, typer.Option(help="Where an embedded engine's model runs: cpu, cuda, or one GPU as cuda:1.")
    ] = "cpu",
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each vLLM server, where the machine has any.")] = 1,
    vllm_command: Annotated[str, typer.Option(help="The vllm executable, by name or by path.")] = "vllm",
    only_references: Annotated[
        bool,
        typer.Option(
            "--only-references/--any-images",
            help="Whether vLLM's generate endpoint refuses tensors and content parts: whoever may send those "
            "can end vLLM's engine for everybody.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print replicas as JSON, one object a line.")] = False,
) -> None:
    """Serve a model to requests whose images are references.

    A line with each replica's URL is printed once it answers. One that dies ends all, with its last words.

    What stands after -- goes to vLLM as it is: filmroll serve MODEL --engine vllm -- --dtype bfloat16
    """
    from filmroll.run.processes.ending import Ending
    from filmroll.run.serving.offer import Offer, take_ports
    from filmroll.run.serving.serve import serve as run_replicas

    if engine is Kind.EMBEDDED and context.args:
        raise ConfigError(f"{context.args[0]!r} is nothing that the embedded engine knows", remedy="See --help")
    # While a model is loaded; what serves then hears for itself.
    Ending().listen()
    called = name or Path(model).name
    offer = Offer(model, called, store, store_cache, weights, host, take_ports(host, port, replicas))
    offer.check()

    def ready(number: int, url: str, pid: int) -> None:
        said = {"replica": number, "url": url, "pid": pid, "model": called, "engine": engine.value}
        which = f"replica {number} serves" if replicas > 1 else "serving"
        print(json.dumps(said) if as_json else f"{which} {called} at {url}", flush=True)

    if engine is Kind.VLLM:
        servers = offer.vllm(vllm_command, context.args, gpus=gpus, only_references=only_references)
    elif replicas > 1:
        servers = offer.embedded(threads=threads, device=device)
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        offer.serve_embedded(lambda url: ready(0, url, os.getpid()), threads=threads, device=device)
        return
    asyncio.run(run_replicas(servers, lambda replica, pid: ready(replica.number, replica.url, pid), _pass_on))


def _pass_on(line: str) -> None:
    """What a replica prints."""
    print(line, file=sys.stderr, flush=True)
