"""A thousand rollouts at once in one worker process: how late its event loop runs, and whether its memory grows.

    python benchmarks/concurrent_rollouts.py

The worker is the real one: color-codeword episodes of two turns, a store on disk, rendering, HTTP
requests with references, trajectories packed as for the orchestrator. The engine is a stand-in in a
process of its own, which reads real requests and answers them by the protocol after a while, with
random letters: what is measured is the worker. 11,000 rollouts are played; the first 1,000, during
which caches fill, do not count.

How late the loop runs depends on who else wants the processor. So a second process with the same
beat and nothing to do runs beside the worker, and the processor time that the loop's own thread
takes between two beats is counted, too: as long as that, the loop would be late on a machine of its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
from aiohttp import web
from harness import conclude, in_process, show

from filmroll.environments.color_codeword import ColorCodeword, ColorCodewordConfig
from filmroll.families.tiny import build_tiny_model
from filmroll.render import load_renderer
from filmroll.rollout import EngineClient
from filmroll.rollout.worker import RolloutTask, Worker
from filmroll.store import open_store
from filmroll.wire.generate import GenerateRequest, SamplingParams
from filmroll.wire.packed import pack

AT_ONCE, WARM, COUNTED = 1_000, 1_000, 10_000
THINKING = (4.0, 12.0)
"""Seconds that the stand-in takes for an answer."""
BEAT = 0.005
"""Seconds between two looks at how late the loop is."""
LETTERS = range(65, 74)


async def stand_in() -> None:
    """Answer generate requests until killed, and print the address first."""
    read = msgspec.json.Decoder(GenerateRequest)

    async def generate(request: web.Request) -> web.Response:
        asked = read.decode(await request.read())
        await asyncio.sleep(random.uniform(*THINKING))
        said = [*random.choices(LETTERS, k=4), asked.sampling_params.stop_token_ids[0]]
        images = len(asked.features.kwargs_data["image"]) if asked.features and asked.features.kwargs_data else 0
        counts = dict.fromkeys(("referenced", "verified", "decoded", "consumed"), images)
        choice = {
            "index": 0,
            "token_ids": said,
            "logprobs": {"content": [{"token_id": token, "logprob": -random.random()} for token in said]},
            "finish_reason": "stop",
        }
        answer = {"request_id": asked.request_id or "", "choices": [choice], "receipt": counts}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/inference/v1/generate", generate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=AT_ONCE)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def measure(work: Path, port: str) -> dict[str, float]:
    renderer = load_renderer(work / "model", open_store(work / "images"))
    client = EngineClient(f"http://127.0.0.1:{port}", "tiny", way="references")
    worker = Worker(ColorCodeword(ColorCodewordConfig(turns=2)), renderer, client)
    lags, busy_for = [], []
    weights: list[int] = []
    began = finished = sent = 0

    async def keep_playing() -> None:
        nonlocal began, finished, sent
        while began < WARM + COUNTED:
            began += 1
            played = await worker.rollout(RolloutTask(f"r{began}", began % 4096, SamplingParams(max_tokens=8)))
            sent += len(pack(played))
            finished += 1
            if finished % 1_000 == 0:
                weights.append(psutil.Process(os.getpid()).memory_info().rss)

    async def listen_to_the_beat() -> None:
        """How much later than asked the loop comes back, at every moment."""
        while True:
            asked, used = time.perf_counter(), time.thread_time()
            await asyncio.sleep(BEAT)
            if finished >= WARM:
                lags.append(time.perf_counter() - asked - BEAT)
                busy_for.append(time.thread_time() - used)

    beat = asyncio.create_task(listen_to_the_beat())
    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(keep_playing() for _ in range(AT_ONCE)))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    beat.cancel()
    await client.close()
    gc.collect()
    steady = np.array(weights[1:], np.float64) / 1e3
    return {
        "lag_p50_ms": float(np.percentile(lags, 50)) * 1e3,
        "lag_p99_ms": float(np.percentile(lags, 99)) * 1e3,
        "lag_max_ms": max(lags) * 1e3,
        "loop_busy_p99_ms": float(np.percentile(busy_for, 99)) * 1e3,
        "loop_busy_max_ms": max(busy_for) * 1e3,
        "growth_kb_per_1000_rollouts": float(np.median(np.diff(steady))),
        "resident_mb_after_2000": steady[0] / 1e3,
        "resident_mb": steady[-1] / 1e3,
        "rollouts_per_second": (WARM + COUNTED) / seconds,
        "busy": busy / seconds,
        "kb_sent_per_rollout": sent / (WARM + COUNTED) / 1e3,
    }


async def idle() -> None:
    """The same beat in a process that does nothing else, until standard input ends; prints how late it was."""
    lags = []
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    while not ended.done():
        asked = time.perf_counter()
        await asyncio.sleep(BEAT)
        lags.append(time.perf_counter() - asked - BEAT)
    print(float(np.percentile(lags, 99)) * 1e3)


def beside_others(work: Path) -> dict[str, float]:
    """The worker's figures, while the stand-in and the idle process run."""

    def started(what: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    with started("stand-in") as engine, started("idle") as beside:
        try:
            assert engine.stdout is not None
            figures = in_process(__file__, "worker", str(work), engine.stdout.readline().strip())
            return figures | {"lag_p99_ms_of_an_idle_process": float(beside.communicate()[0])}
        finally:
            engine.kill()
            beside.kill()


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8 * AT_ONCE)), hard))
    if sys.argv[1:] in (["stand-in"], ["idle"]):
        asyncio.run({"stand-in": stand_in, "idle": idle}[sys.argv[1]]())
        return
    if len(sys.argv) == 4:
        print(json.dumps(asyncio.run(measure(Path(sys.argv[2]), sys.argv[3]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_model(Path(folder) / "model")
        figures = beside_others(Path(folder))
    show(
        f"{AT_ONCE:,} rollouts at once in one worker process, {COUNTED:,} in all",
        ("what", "measured"),
        [(name, value) for name, value in figures.items()],
    )
    goals = {"lag_p99_ms": ("<=", 50.0), "growth_kb_per_1000_rollouts": ("<=", 250.0)}
    conclude("concurrent_rollouts", {name: round(value, 2) for name, value in figures.items()}, goals)


if __name__ == "__main__":
    main()
