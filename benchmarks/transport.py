"""Training samples on their way to a trainer: streams of references beside float32 pixel_values, msgpack and pickle.

    python benchmarks/transport.py

The samples are those of 8-turn rollouts with a 1024x1024 image a turn, rendered, bridged and stored
as a worker does it; completions are random tokens. Each way has a sender and a receiver, two
processes that speak over a loopback ZeroMQ socket; one way goes through files. Mode processed is
for trainers that see no store: the stream takes each image's levels along, 8 bits and one temporal
copy. The baselines send
the same samples with each image's pixel_values as transformers' own processor makes them, in one
message each, the plain way: msgpack, pickle. What is timed is from the first sample that the
receiver has decoded to the last one; samples and pixels are ready before.

The cost of a turn is what it takes to encode the nodes and the image that the turn adds to its
rollout's trajectory, in rollouts of 64 turns.
"""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq
from harness import conclude, in_process, show
from PIL import Image
from rollout_memory import ANSWER, SIDE, screenshot

from filmroll.families import load_family
from filmroll.families.tiny import build_tiny_model
from filmroll.materialize import Materializer
from filmroll.render import load_renderer
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.store import open_store
from filmroll.train.batches.samples import samples
from filmroll.train.loading.processed import with_images
from filmroll.train.step import TrainStep
from filmroll.wire.packed import pack, unpack
from filmroll.wire.training import LossWeights, MicroBatch, TrainingSample
from filmroll.wire.transport import Codec, Window, open_receiver, open_sender

TURNS, LONG = 8, 64
ROLLOUTS, WITH_PIXELS = 12, 2
WINDOW = Window(messages=64, nbytes=1 << 29)
REPEATS = 3
COUNTS = {"zmq": 3000, "files": 300, "processed": 40, "msgpack": 8, "pickle": 8}
CODEC = Codec(TrainingSample)
PROCESSED = Codec(TrainStep, tensors=True)


def play(renderer: Any, rollout: int, turns: int) -> Trajectory:
    """One rollout as a worker plays it, with random completions."""
    draw = random.Random(rollout)
    trajectory = Trajectory(f"rollout_{rollout}", renderer.family.placeholders.pad)
    prompt, node, said, before = None, ROOT, [], 0
    for turn in range(turns):
        content = [
            {"type": "image", "image": screenshot(rollout * LONG + turn)},
            {"type": "text", "text": "This is the page after your last action. What do you do next?"},
        ]
        message = {"role": "user", "content": content}
        longer = renderer.render([message]) if prompt is None else renderer.bridge(prompt, said, [message])
        images = longer.images[len(prompt.images) :] if prompt is not None else longer.images
        node = trajectory.add_prompt(node, longer.logical[before:], images)
        said = [draw.randrange(97, 122) for _ in range(ANSWER)] + renderer.stop_token_ids[:1]
        logprobs = [-draw.random() for _ in said]
        node = trajectory.add_sampled(node, said, logprobs, temperature=1.0, version=turn, finish_reason="stop")
        prompt, before = longer, len(longer.logical) + len(said)
    return trajectory


def prepare(work: Path) -> dict[str, Any]:
    """Samples for all ways, pixels for the baselines, and what encoding costs."""
    from transformers import AutoImageProcessor

    build_tiny_model(work / "model")
    renderer = load_renderer(work / "model", open_store(work / "images"))
    processor = AutoImageProcessor.from_pretrained(work / "model", backend="pil")
    weights = LossWeights(rl=1.0)
    made = []
    for number in range(ROLLOUTS):
        trajectory = play(renderer, number, TURNS)
        made += samples(trajectory, renderer.family, advantage=1.0, weights=weights)
        for turn, image in enumerate(trajectory.images if number < WITH_PIXELS else []):
            picture = Image.open(io.BytesIO(renderer.store.read(image.image)))
            np.save(work / f"{number}-{turn}.npy", processor(picture, return_tensors="np")["pixel_values"])
    (work / "samples").write_bytes(pack(made))
    return {"turns": turn_costs(renderer), "samples": sample_costs(renderer)}


def turn_costs(renderer: Any) -> dict[str, list[float]]:
    """Microseconds and bytes of what each of 64 turns adds, the turns taken in turn, many times over."""
    trajectory = play(renderer, ROLLOUTS, LONG)
    added = [(trajectory.nodes[2 * turn : 2 * turn + 2], trajectory.images[turn]) for turn in range(LONG)]
    rounds = [[timed(partial(pack, one), 20) for one in added] for _ in range(60)]
    # The first turn also holds what stands before a conversation; it is as others are but for some tokens.
    return {
        "seconds": [statistics.median(column) for column in zip(*rounds, strict=True)],
        "bytes": [len(pack(one)) for one in added],
    }


def sample_costs(renderer: Any) -> dict[int, list[float]]:
    """Seconds to encode and to decode a whole sample, and its bytes, by its turns."""
    costs = {}
    for turns in (1, 8, LONG):
        (sample,) = samples(play(renderer, ROLLOUTS, turns), renderer.family, advantage=1.0, weights=LossWeights(rl=1))
        parts = CODEC.encode(0, sample)
        size = sum(part.nbytes for part in parts)
        encode = min(timed(partial(CODEC.encode, 0, sample), 20) for _ in range(20))
        costs[turns] = [encode, min(timed(partial(CODEC.decode, parts), 20) for _ in range(20)), size]
    return costs


def timed(work: Callable[[], Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


# The five ways. A receiver prints where it listens, and at the end what it has measured.


def send(way: str, work: Path, place: str, count: int) -> None:
    made = unpack((work / "samples").read_bytes(), list[TrainingSample])
    if way in ("zmq", "files"):
        asyncio.run(send_stream(CODEC, made, place, count))
        return
    if way == "processed":
        asyncio.run(send_stream(PROCESSED, with_levels(made[:WITH_PIXELS], work.parent), place, count))
        return
    pixels = [[np.load(work / f"{number}-{turn}.npy") for turn in range(TURNS)] for number in range(WITH_PIXELS)]
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, 2)
    socket.connect(place)
    encode = plain_msgpack if way == "msgpack" else plain_pickle
    for number in range(count):
        which = number % WITH_PIXELS
        socket.send(encode(fields(made[which]), pixels[which]), copy=False)
    socket.close()
    zmq.Context.instance().term()


def with_levels(made: list[TrainingSample], work: Path) -> list[TrainStep]:
    """A step of each sample with its images' arrays, as an orchestrator sends it in mode processed."""
    materializer = Materializer(open_store(work / "images"), load_family(work / "model"), cache_bytes=1 << 30)
    steps = [TrainStep(0.0, 0, [MicroBatch([[sample]])]) for sample in made]
    return [with_images(step, materializer) for step in steps]


async def send_stream(codec: Codec[Any], made: Sequence[Any], place: str, count: int) -> None:
    sender = await open_sender(place, codec, WINDOW)
    for number in range(count):
        await sender.send(made[number % len(made)])
    await sender.settle()
    await sender.close()


def receive(way: str, work: Path, count: int) -> None:
    if way in ("zmq", "files", "processed"):
        place = str(work / "stream") if way == "files" else "tcp://127.0.0.1"
        codec = PROCESSED if way == "processed" else CODEC
        arrivals, size = asyncio.run(receive_stream(codec, place, count))
    else:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        socket.setsockopt(zmq.RCVHWM, 2)
        print(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}", flush=True)
        arrivals, size = receive_plain(way, socket, count)
    print(json.dumps({"samples": (count - 1) / (arrivals[-1] - arrivals[0]), "bytes": size}))


async def receive_stream(codec: Codec[Any], place: str, count: int) -> tuple[list[float], float]:
    receiver = await open_receiver(place, codec, WINDOW)
    print(receiver.place, flush=True)
    arrivals, size = [], 0
    for number in range(count):
        sample = (await receiver.receive()).message
        arrivals.append(time.perf_counter())
        size += sum(part.nbytes for part in codec.encode(number, sample)) if number < ROLLOUTS else 0
        if number % 16 == 15 or number == count - 1:
            await receiver.acknowledge(number + 1)
    # Let the last word reach the sender.
    await asyncio.sleep(0.5)
    await receiver.close()
    # What weighing them took is no transport: the clock starts after it.
    return arrivals[ROLLOUTS:] if count > ROLLOUTS else arrivals, size / ROLLOUTS


def receive_plain(way: str, socket: Any, count: int) -> tuple[list[float], float]:
    decode = plain_unpack if way == "msgpack" else pickle.loads
    arrivals, size = [], 0
    for _ in range(count):
        frame = socket.recv(copy=False)
        size += len(frame.buffer)
        _, pixels = decode(frame.buffer)
        assert sum(array.size for array in pixels) == TURNS * 4096 * 1536
        arrivals.append(time.perf_counter())
    return arrivals, size / count


def fields(sample: TrainingSample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in sample.__struct_fields__}


def plain_msgpack(sample: dict[str, Any], pixels: list[Any]) -> bytes:
    """As fast as it goes in one body: arrays are copied into it, and out of it not at all."""
    values = [(array.shape, msgspec.msgpack.Ext(1, array.reshape(-1).data)) for array in pixels]
    return msgspec.msgpack.encode((sample, values), enc_hook=lambda array: msgspec.msgpack.Ext(2, array.data))


def plain_unpack(data: memoryview) -> Any:
    kinds = {1: np.float32, 2: np.uint8}
    sample, values = msgspec.msgpack.decode(data, ext_hook=lambda code, part: np.frombuffer(part, kinds[code]))
    return sample, [array.reshape(shape) for shape, array in values]


def plain_pickle(sample: dict[str, Any], pixels: list[Any]) -> bytes:
    return pickle.dumps((sample, pixels), protocol=5)


def measure(way: str, work: Path) -> Iterator[dict[str, float]]:
    for repeat in range(REPEATS):
        folder = work / f"{way}-{repeat}"
        folder.mkdir()
        for file in [work / "samples", *work.glob("*.npy")]:
            (folder / file.name).symlink_to(file)
        arguments = [sys.executable, __file__, "receive", way, str(folder), str(COUNTS[way])]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout is not None
            place = receiver.stdout.readline().strip()
            subprocess.run([sys.executable, __file__, "send", way, str(folder), place, str(COUNTS[way])], check=True)
            yield json.loads(receiver.communicate()[0].splitlines()[-1])


def main() -> None:
    match sys.argv[1:]:
        case ["prepare", folder]:
            print(json.dumps(prepare(Path(folder))))
            return
        case ["send", way, folder, place, count]:
            send(way, Path(folder), place, int(count))
            return
        case ["receive", way, folder, count]:
            receive(way, Path(folder), int(count))
            return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        costs = in_process(__file__, "prepare", folder)
        ways = {way: list(measure(way, work)) for way in COUNTS}
    speed = {way: statistics.median(one["samples"] for one in runs) for way, runs in ways.items()}
    size = {way: runs[0]["bytes"] for way, runs in ways.items()}
    names = {
        "zmq": "references, stream over ZeroMQ",
        "files": "references, stream over files",
        "processed": "levels beside references, mode processed",
        "msgpack": "float32 pixel_values, msgpack",
        "pickle": "float32 pixel_values, pickle",
    }
    show(
        f"Training samples of {TURNS}-turn rollouts, one {SIDE}x{SIDE} image a turn; medians of {REPEATS}",
        ("way", "samples a second", "slowest", "fastest", "KB a sample"),
        [
            (
                names[way],
                speed[way],
                *(pick(one["samples"] for one in ways[way]) for pick in (min, max)),
                size[way] / 1e3,
            )
            for way in COUNTS
        ],
    )
    seconds, weights = costs["turns"]["seconds"], costs["turns"]["bytes"]
    show(
        "Encoding what one turn adds, in a rollout of 64",
        ("turn", "microseconds", "bytes"),
        [(turn, 1e6 * seconds[turn - 1], weights[turn - 1]) for turn in (1, 2, 8, 16, 32, 64)],
    )
    show(
        "A whole sample, by its turns",
        ("turns", "microseconds to encode", "to decode", "KB", "KB a turn"),
        [
            (turns, 1e6 * encode, 1e6 * decode, nbytes / 1e3, nbytes / 1e3 / int(turns))
            for turns, (encode, decode, nbytes) in costs["samples"].items()
        ],
    )
    figures = {
        "bytes_ratio": round(min(size["msgpack"], size["pickle"]) / size["zmq"], 1),
        "samples_ratio": round(speed["zmq"] / max(speed["msgpack"], speed["pickle"]), 1),
        "samples_ratio_files": round(speed["files"] / max(speed["msgpack"], speed["pickle"]), 1),
        "bytes_ratio_processed": round(min(size["msgpack"], size["pickle"]) / size["processed"], 2),
        "samples_ratio_processed": round(speed["processed"] / max(speed["msgpack"], speed["pickle"]), 2),
        "kb_per_sample": round(size["zmq"] / 1e3, 1),
        "turn64_over_turn1": round(statistics.mean(seconds[-4:]) / statistics.mean(seconds[:4]), 3),
    }
    goals = {
        "bytes_ratio": (">=", 1000.0),
        "samples_ratio": (">=", 200.0),
        "turn64_over_turn1": ("<=", 1.3),
    }
    conclude("transport", figures, goals)


if __name__ == "__main__":
    main()
