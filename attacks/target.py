"""What every attack shares: a server under attack, a good request to spoil, and what counts as having held.

An attack is a function that sends requests to a `Target` and yields an `Outcome` for each. It runs in
a test, or by hand against any server that shares a store's folder with whoever attacks it:

    python attacks/forged_grid.py --url http://127.0.0.1:8000 --model MODEL --store IMAGES
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import msgspec
import numpy as np
import psutil
from body import SHOWN, Body, differences
from verdict import Answer, Outcome, Verdict

from filmroll.families import Family, load_family
from filmroll.image import EXTENSIONS, ImageRef
from filmroll.render import Renderer, load_renderer
from filmroll.rollout.client import generate_request
from filmroll.store import Store, open_store
from filmroll.wire.generate import SamplingParams

# Hostile images are those of the store's tests.
sys.path.append(str(Path(__file__).parents[1]))

GENERATE = "/inference/v1/generate"
JSON = {"content-type": "application/json"}
PATIENCE_S = 120
"""A request that takes longer has made the server hang."""
TOGETHER, EVERY = 4, 100
"""Of many requests, so many at once, and after so many the server is looked at."""
SIZES = ((100, 60), (64, 96))
"""Width and height of the two pictures in the good request."""

_PRIVATE = re.compile(r"Traceback|0x[0-9a-f]{6}|(^|[\s'\"(])(file://)?/(etc|home|root|tmp|usr|var|work|proc|dev)/")


class Target:
    """A server, the store it reads, and what it said before it was attacked."""

    def __init__(
        self,
        url: str,
        model: Path | str,
        store: Path,
        *,
        pid: int | None = None,
        thorough: bool = False,
    ) -> None:
        self.url, self.model, self.store_dir = url, model, store
        self.thorough = thorough
        """Whether attacks with a full count make it."""
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)
        (served,) = self.http.get("/v1/models").json()["data"]
        self.name, self.max_model_len = served["id"], served["max_model_len"]
        self.is_vllm = served["owned_by"] == "vllm"
        self._process = psutil.Process(pid) if pid is not None else None
        self._processes = self.processes()
        self._before = self._settled()

    @cached_property
    def family(self) -> Family:
        return load_family(self.model)

    @cached_property
    def store(self) -> Store:
        return open_store(self.store_dir)

    @cached_property
    def _renderer(self) -> Renderer:
        return load_renderer(self.model, self.store)

    @cached_property
    def _good(self) -> Body:
        return self.request([self.picture(seed, size) for seed, size in enumerate(SIZES)])

    def picture(self, seed: int, size: tuple[int, int] = SIZES[0]) -> ImageRef:
        width, height = size
        return self.store.put(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))

    def unseen(self) -> ImageRef:
        """A picture that the server cannot have seen."""
        return self.picture(secrets.randbits(64))

    def file(self, picture: ImageRef) -> Path:
        return Path(unquote(urlsplit(picture.uri).path))

    @contextmanager
    def spoiled(self, picture: ImageRef) -> Iterator[Path]:
        """The place of a picture in the store, for something else to be put there meanwhile."""
        place = self.file(picture)
        aside = place.with_name(f"{place.name}.aside")
        place.rename(aside)
        try:
            yield place
        finally:
            if place.is_dir() and not place.is_symlink():
                place.rmdir()
            else:
                place.unlink(missing_ok=True)
            aside.rename(place)

    @contextmanager
    def planted(self, data: bytes, ending: str = ".png", size: tuple[int, int] = SIZES[0]) -> Iterator[ImageRef]:
        """A file that somebody has put into the store past filmroll, under its right digest."""
        digest = hashlib.sha256(data).hexdigest()
        place = self.store_dir / digest[:2] / f"{digest}{ending}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
        media_type = next(name for name, own in EXTENSIONS.items() if own == ending)
        try:
            yield ImageRef(place.as_uri(), digest, media_type, *size, len(data))
        finally:
            place.unlink()

    def request(self, pictures: Sequence[ImageRef], **params: Any) -> Body:
        """What an honest client asks about these pictures."""
        content = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": "which letters are these?"})
        prompt = self._renderer.render([{"role": "user", "content": content}])
        sampling = SamplingParams(**{"max_tokens": 3, "temperature": 0.0} | params)
        body: Body = msgspec.to_builtins(generate_request(prompt, sampling, model=self.name))
        body["sampling_params"] = msgspec.to_builtins(sampling)
        return body

    def good(self) -> Body:
        """A fresh copy of the request that is sent between attacks: two pictures, greedy sampling."""
        return copy.deepcopy(self._good)

    def processes(self) -> set[int]:
        """The server's and its children's; empty if nobody said which they are."""
        if self._process is None:
            return set()
        return {self._process.pid, *(one.pid for one in self._process.children(recursive=True))}

    def ask(self, body: Body | bytes) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        for _ in range(2):
            try:
                response = self.http.post(GENERATE, content=content, headers=JSON)
                return Answer(response.status_code, response.text)
            except (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError):
                # The connection may have been an old one, closed after the request before: once more, on a new one.
                continue
            except httpx.TransportError as error:
                return Answer(0, type(error).__name__)
        return Answer(0, "the connection is closed")

    def send(
        self, name: str, body: Body | bytes, right: Verdict, *, vllm: Verdict | None = None, check: bool = True
    ) -> Outcome:
        """Send one request and judge the answer, and with `check` whether the server goes on as before."""
        answer = self.ask(body)
        verdict = vllm if vllm is not None and self.is_vllm else right
        sent = self.described(body)
        wrong = verdict.wrong(answer) or self.leak(answer, sent) or (self.harm() if check else "")
        return Outcome(name, sent, answer, wrong)

    def together(self, attempt: Callable[[int], Outcome], count: int) -> Iterator[Outcome]:
        """Many requests, a few at a time; the server is looked at now and then."""
        with ThreadPoolExecutor(TOGETHER) as pool:
            for start in range(0, count, EVERY):
                numbers = range(start, min(start + EVERY, count))
                yield from pool.map(attempt, numbers)
                yield Outcome(f"after {numbers.stop}", "the good request", Answer(200, ""), self.harm())

    def described(self, body: Body | bytes) -> str:
        """A request in words: how it differs from the good one."""
        if isinstance(body, bytes):
            return f"{len(body):,} bytes, {body[:80]!r}"
        return "; ".join(differences(self._good, body)) or "the good request"

    def leak(self, answer: Answer, sent: str) -> str:
        """What a refusal says of the server's machine that the request did not say itself."""
        if answer.status == 200:
            return ""
        said = answer.text.replace("\\/", "/")
        found = {match[0].strip("'\" (") for match in _PRIVATE.finditer(said)}
        if str(self.store_dir) in said:
            found.add(str(self.store_dir))
        private = sorted(one for one in found if one not in sent)
        return f"its answer holds {private}" if private else ""

    def harm(self) -> str:
        """How the server differs from what it was before the attack; empty if in nothing."""
        after = self.ask(self.good())
        if after.status != 200:
            return f"the next good request is answered with {after.status}: {after.text[:200]}"
        if after.sampled != self._before:
            return f"the next good request is answered with {after.sampled}, before it was {self._before}"
        if self.processes() != self._processes:
            return "its processes are others than before"
        return ""

    def _settled(self) -> tuple[list[int], list[float]]:
        """What a good request says, once the caches have it."""
        answers = [self.ask(self.good()) for _ in range(3)]
        if answers[-1].status != 200:
            raise SystemExit(f"a good request is answered with {answers[-1].status}: {answers[-1].text}")
        return answers[-1].sampled


Attack = Callable[[Target], Iterator[Outcome]]


def main(attack: Attack) -> None:
    """Run one attack by hand; the exit status says whether the server held."""
    parser = argparse.ArgumentParser(description=sys.modules[attack.__module__].__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True, help="the folder of the model that is served")
    parser.add_argument("--store", type=Path, required=True, help="the folder of the server's images")
    parser.add_argument("--pid", type=int, help="the server's process, to see that it and its children stay")
    parser.add_argument("--thorough", action="store_true", help="attacks with many requests send all of them")
    told = parser.parse_args()
    target = Target(told.url, told.model, told.store, pid=told.pid, thorough=told.thorough)
    outcomes = []
    for outcome in attack(target):
        print(f"{'BROKEN' if outcome.wrong else 'held  '}  {outcome.name}")
        print(f"        sent    {outcome.sent}")
        print(f"        came    {outcome.answer.status} {outcome.answer.text[:SHOWN]}")
        if outcome.wrong:
            print(f"        WRONG   {outcome.wrong}")
        outcomes.append(outcome)
    broken = sum(bool(outcome.wrong) for outcome in outcomes)
    print(f"{len(outcomes)} requests, {broken} of them got through" if broken else f"{len(outcomes)} requests, it held")
    sys.exit(bool(broken or not outcomes))
