"""The resolver: each image once, so many requests at a time and in turn, so many pixels, and the event loop is free."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from filmroll.engine.embedded.batch import Row
from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.engine.images.gate import Gate
from filmroll.engine.images.resolve import Resolved
from filmroll.engine.images.resolver import Bounds, Resolver
from filmroll.engine.statistics import Statistics
from filmroll.errors import (
    EngineUnavailableError,
    FilmrollError,
    ImageDamagedError,
    ImageNotFoundError,
    OutsideStoreError,
    StoreUnavailableError,
)
from filmroll.image import ImageRef
from filmroll.materialize.materializer import Materializer
from filmroll.store import Store
from filmroll.store.shelves.files import FileShelf
from filmroll.wire.generate import GenerateAnswer, GenerateRequest
from filmroll.wire.reference import read_reference, write_reference


class WatchedShelf(FileShelf):
    """A folder whose reads a test counts and holds up."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()
        self.before: Callable[[str], object] = lambda _: None
        self._lock = threading.Lock()

    def read(self, key: str, at_most: int) -> bytes:
        with self._lock:
            self.reads[key.rpartition("/")[2].partition(".")[0]] += 1
        self.before(key)
        return super().read(key, at_most)


class Bench:
    """A resolver at work on a store of its own, and what it counts."""

    def __init__(self, desk: Any, store_dir: Path, *, cache_bytes: int = 1 << 28, **bounds: int) -> None:
        self.desk = desk
        self.shelf = WatchedShelf(store_dir)
        self.materializer = Materializer(Store(self.shelf), desk.family, cache_bytes=cache_bytes)
        self.statistics = Statistics(CollectorRegistry())
        self.resolver = Resolver({desk.family.recipe: self.materializer}, self.statistics, Bounds(**bounds))

    def value(self, name: str, **labels: str) -> float:
        value = self.statistics._registry.get_sample_value(f"filmroll_engine_{name}", labels)
        return 0 if value is None else value

    @asynccontextmanager
    async def resolved(self, request: GenerateRequest) -> AsyncIterator[Resolved]:
        async with self.resolver.visit() as visit:
            yield await visit.resolve(request)

    async def once(self, request: GenerateRequest) -> Resolved:
        async with self.resolved(request) as resolved:
            return resolved

    async def all(self, requests: Sequence[GenerateRequest]) -> list[Resolved | BaseException]:
        return await asyncio.gather(*map(self.once, requests), return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 what is waited for happens in other threads
        await asyncio.sleep(0)


@pytest.fixture
def bench(desk: Any) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(desk, desk.store_dir, **options))
        return made[-1]

    yield make
    for one in made:
        one.resolver.close()


def test_what_comes_out_is_what_the_materializer_loads(bench: Callable[..., Bench], desk: Any) -> None:
    pictures = [desk.picture(number) for number in (1, 2, 1, 3)]
    resolved = asyncio.run(bench().once(desk.request(pictures)))
    expected = Materializer(desk.store, desk.family).load([desk.family.describe(one) for one in pictures])
    assert resolved.receipt == expected.receipt
    for one, other in zip(resolved.pictures, expected.pictures, strict=True):
        assert one.identity == other.identity
        assert all((one.arrays[name] == array).all() for name, array in other.arrays.items())


@pytest.mark.parametrize("cache_bytes", [1 << 28, 0], ids=["kept", "held by requests alone"])
def test_each_image_is_read_once_by_200_requests_of_20(
    bench: Callable[..., Bench], desk: Any, cache_bytes: int
) -> None:
    """Without any cache, too, as long as one of the requests still holds the image."""
    pictures = [desk.picture(1000 + number, (32, 32)) for number in range(40)]
    requests = [desk.request([pictures[(first + step) % 40] for step in range(20)], words=1) for first in range(200)]
    one = bench(cache_bytes=cache_bytes, in_flight=8)
    most = 0

    async def hold(request: GenerateRequest, everybody: asyncio.Barrier) -> int:
        nonlocal most
        async with one.resolved(request) as resolved:
            most = max(most, one.value("requests_in_flight"))
            await everybody.wait()
            return resolved.receipt.decoded

    async def together() -> list[int]:
        everybody = asyncio.Barrier(200)
        return await asyncio.gather(*(hold(request, everybody) for request in requests))

    assert asyncio.run(together()) == [20] * 200
    assert set(one.shelf.reads.values()) == {1}
    assert len(one.shelf.reads) == 40
    assert 0 < most <= 8
    assert (one.value("image_cache_misses_total"), one.value("image_cache_hits_total")) == (40, 3960)
    # Distinct images count once, and nothing is held any more.
    assert one.value("pixel_bytes_in_flight") == one.value("requests_in_flight") == 0


def test_200_requests_of_20_images_through_the_engine(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In flight stays bounded, pixels too, and each image is decoded once, though the cache holds hardly any.

    The model waits until all are there: what no request under way shows any more may be decoded again.
    """
    pictures = [desk.picture(3000 + number, (32, 32)) for number in range(40)]
    requests = [
        desk.request([pictures[(first + step) % 40] for step in range(20)], words=1, max_tokens=1, seed=first)
        for first in range(200)
    ]
    each = desk.family.level_bytes(pictures[0])
    shelf = WatchedShelf(desk.store_dir)
    materializer = Materializer(Store(shelf), desk.family, cache_bytes=each)
    bounds = Bounds(in_flight=8, pixel_bytes=60 * each)
    most: Counter[str] = Counter()
    with EmbeddedEngine(desk.model_dir, desk.family, materializer, max_batch=16, bounds=bounds) as engine:

        def look(_: str) -> None:
            for line in engine.statistics.text().splitlines():
                name, _, value = line.rpartition(" ")
                if not line.startswith("#"):
                    most[name] = max(most[name], float(value))

        shelf.before = look
        submit, submitted, all_there = engine._loop.submit, itertools.count(1), threading.Event()

        def count(row: Row) -> None:
            submit(row)
            if next(submitted) == len(requests):
                all_there.set()

        monkeypatch.setattr(engine._loop, "submit", count)
        engine._loop.between_batches(lambda: all_there.wait(100))

        async def together() -> list[GenerateAnswer]:
            return await asyncio.gather(*map(engine.generate, requests))

        answers = asyncio.run(together())
    assert all(answer.receipt is not None and answer.receipt.consumed == 20 for answer in answers)
    assert set(shelf.reads.values()) == {1}
    assert 0 < most["filmroll_engine_requests_in_flight"] <= 8
    assert 0 < most["filmroll_engine_pixel_bytes_in_flight"] <= 40 * each


def test_pixels_under_way_are_bounded_and_requests_pass_in_order(bench: Callable[..., Bench], desk: Any) -> None:
    pictures = [desk.picture(1100 + number, (96, 96)) for number in range(12)]
    each = desk.family.level_bytes(pictures[0])
    one = bench(cache_bytes=0, pixel_bytes=3 * each, readers=2)
    passed: list[int] = []
    most = 0.0

    async def hold(number: int) -> None:
        nonlocal most
        async with one.resolved(desk.request([pictures[number]])):
            passed.append(number)
            most = max(most, one.value("pixel_bytes_in_flight"))
            await asyncio.sleep(0.01)

    async def large() -> None:
        async with one.resolved(desk.request(pictures)) as resolved:
            assert one.value("pixel_bytes_in_flight") == 12 * each
            assert resolved.receipt.decoded == 12

    async def together() -> None:
        await asyncio.gather(*map(hold, range(12)))
        await large()

    asyncio.run(together())
    assert most == 3 * each
    assert sorted(passed) == list(range(12))


def test_who_needs_no_pixels_does_not_wait_for_room_for_them(bench: Callable[..., Bench], desk: Any) -> None:
    picture, other = desk.picture(1150), desk.picture(1151)
    one = bench(pixel_bytes=1)

    async def together() -> None:
        async with one.resolved(desk.request([picture])):
            waiting = asyncio.ensure_future(one.once(desk.request([other])))
            await until(lambda: one.value("requests_in_flight") == 1)
            assert not (await one.once(desk.request())).pictures
            assert not waiting.done()
        assert (await waiting).receipt.decoded == 1

    asyncio.run(together())


def test_two_that_need_more_than_they_thought_do_not_wait_for_each_other(
    bench: Callable[..., Bench], desk: Any
) -> None:
    """As in vLLM, whose cache has dropped what it was said to keep."""
    pictures = [desk.picture(1160 + number, (96, 96)) for number in range(4)]
    one = bench(pixel_bytes=2 * desk.family.level_bytes(pictures[0]))

    async def stay(mine: list[ImageRef], together: asyncio.Barrier) -> int:
        async with one.resolver.visit() as visit:
            claims = await visit.claims(desk.request(mine))
            await visit.pictures(claims, kept=lambda descriptor: descriptor.image == mine[0])
            await together.wait()
            return len(await visit.pictures(claims))

    async def both() -> list[int]:
        together = asyncio.Barrier(2)
        return await asyncio.gather(stay(pictures[:2], together), stay(pictures[2:], together))

    assert asyncio.run(asyncio.wait_for(both(), 60)) == [2, 2]


def test_more_requests_than_are_taken_are_told_to_come_back(bench: Callable[..., Bench], desk: Any) -> None:
    one = bench(under_way=4, in_flight=1)
    free = threading.Event()
    one.shelf.before = lambda _: free.wait(30)
    requests = [desk.request([desk.picture(1200 + number, (32, 32))]) for number in range(6)]

    async def together() -> list[Resolved | BaseException]:
        running = asyncio.ensure_future(one.all(requests))
        await until(lambda: one.value("requests_waiting") >= 3)
        free.set()
        return await running

    answers = asyncio.run(together())
    refused = [answer for answer in answers if isinstance(answer, EngineUnavailableError)]
    assert len(refused) == 2
    assert refused[0].status == 503
    assert sum(isinstance(answer, Resolved) for answer in answers) == 4


def test_a_slow_store_does_not_stop_the_event_loop(bench: Callable[..., Bench], desk: Any) -> None:
    one = bench(readers=2)
    free = threading.Event()
    one.shelf.before = lambda _: free.wait(30)
    ticks = 0

    async def together() -> None:
        nonlocal ticks
        running = asyncio.ensure_future(one.once(desk.request([desk.picture(1300 + number) for number in range(4)])))
        while ticks < 50:
            await asyncio.sleep(0.001)
            assert not running.done()
            ticks += 1
        free.set()
        assert (await running).receipt.decoded == 4

    asyncio.run(together())


def test_a_request_of_many_images_holds_up_no_other(bench: Callable[..., Bench], desk: Any) -> None:
    """Turn by turn: while it is at its first images, a small request that came later is done."""
    one = bench(readers=1)
    many = [desk.picture(1400 + number, (32, 32)) for number in range(60)]
    few = [desk.picture(1490 + number, (32, 32)) for number in range(2)]
    one.shelf.before = lambda _: time.sleep(0.005)

    async def together() -> int:
        large = asyncio.ensure_future(one.once(desk.request(many, words=1)))
        await until(lambda: bool(one.shelf.reads))
        await one.once(desk.request(few, words=1))
        read = len(one.shelf.reads)
        await large
        return read

    assert asyncio.run(together()) < 20


def test_an_image_that_both_want_does_not_wait_for_the_end_of_a_long_request(
    bench: Callable[..., Bench], desk: Any
) -> None:
    one = bench(readers=1)
    many = [desk.picture(1500 + number, (32, 32)) for number in range(60)]
    one.shelf.before = lambda _: time.sleep(0.005)

    async def together() -> int:
        large = asyncio.ensure_future(one.once(desk.request(many, words=1)))
        await until(lambda: bool(one.shelf.reads))
        await one.once(desk.request(many[-1:], words=1))
        read = len(one.shelf.reads)
        await large
        return read

    assert asyncio.run(together()) < 20
    assert set(one.shelf.reads.values()) == {1}


def test_readers_do_not_wait_for_each_other(bench: Callable[..., Bench], desk: Any) -> None:
    """While one reads an image that ten requests want, the other is free for an eleventh."""
    one = bench(readers=2)
    wanted, other = desk.picture(1600), desk.picture(1601)
    free = threading.Event()
    one.shelf.before = lambda key: free.wait(30) if wanted.sha256 in key else None

    async def together() -> list[Resolved | BaseException]:
        waiting = asyncio.ensure_future(one.all([desk.request([wanted], seed=number) for number in range(10)]))
        await until(lambda: bool(one.shelf.reads))
        assert (await asyncio.wait_for(one.once(desk.request([other])), 30)).receipt.decoded == 1
        free.set()
        return await waiting

    assert all(isinstance(answer, Resolved) for answer in asyncio.run(together()))
    assert one.shelf.reads[wanted.sha256] == 1


def test_who_leaves_takes_nobodys_image_along(bench: Callable[..., Bench], desk: Any) -> None:
    one = bench(readers=1, in_flight=4)
    request = desk.request([desk.picture(1700)])
    free = threading.Event()
    one.shelf.before = lambda _: free.wait(30)

    async def together() -> Resolved:
        running = [asyncio.ensure_future(one.once(request)) for _ in range(6)]
        await until(lambda: bool(one.shelf.reads))
        for leaving in (running[0], running[2], running[4]):
            leaving.cancel()
        await asyncio.sleep(0.05)
        free.set()
        answers = await asyncio.gather(*running, return_exceptions=True)
        assert [type(answer) for answer in answers] == [asyncio.CancelledError, Resolved] * 3
        return await one.once(request)

    assert asyncio.run(together()).receipt.decoded == 1
    assert set(one.shelf.reads.values()) == {1}
    assert one.value("requests_in_flight") == one.value("requests_waiting") == one.value("pixel_bytes_in_flight") == 0


def changed(request: GenerateRequest, **claims: Any) -> GenerateRequest:
    """The same request, whose one reference claims something else of its image."""
    assert request.features is not None
    assert request.features.kwargs_data is not None
    descriptor = read_reference(request.features.kwargs_data["image"][0])
    image = msgspec.structs.replace(descriptor.image, **claims)
    text = write_reference(msgspec.structs.replace(descriptor, image=image))
    features = msgspec.structs.replace(request.features, kwargs_data={"image": [text]})
    return msgspec.structs.replace(request, features=features)


@pytest.mark.parametrize("claims", [{"nbytes": 7}, {"uri": "file:///elsewhere.png"}])
def test_who_lies_about_an_image_fails_alone(bench: Callable[..., Bench], desk: Any, claims: dict[str, Any]) -> None:
    """Honest requests for the same image at the same time do not share the liar's error."""
    one = bench(readers=4)
    honest = desk.request([desk.picture(1800)])
    answers = asyncio.run(one.all([changed(honest, **claims), honest, changed(honest, **claims), honest]))
    for liar in answers[::2]:
        assert isinstance(liar, (OutsideStoreError, ImageDamagedError))
    assert all(isinstance(answer, Resolved) for answer in answers[1::2])


def test_an_error_is_of_the_first_image_and_is_not_kept(bench: Callable[..., Bench], desk: Any) -> None:
    one = bench()
    pictures: list[ImageRef] = [desk.picture(1900 + number) for number in range(4)]
    place = desk.store_dir / pictures[1].sha256[:2] / f"{pictures[1].sha256}.png"
    data = place.read_bytes()
    place.unlink()
    for _ in range(2):
        with pytest.raises(ImageNotFoundError) as caught:
            asyncio.run(one.once(desk.request(pictures)))
        assert (caught.value.field, caught.value.index) == ("features.kwargs_data.image", 1)
    place.write_bytes(data)
    assert asyncio.run(one.once(desk.request(pictures))).receipt.decoded == 4


def test_a_store_that_fails_under_load_fails_those_requests_and_no_later_ones(
    bench: Callable[..., Bench], desk: Any
) -> None:
    one = bench(in_flight=8)
    broken = [desk.picture(2000 + number, (32, 32)) for number in range(30)]
    count = iter(range(10**6))

    def fail_at_times(_: str) -> None:
        if next(count) % 3 == 0:
            raise StoreUnavailableError("the disk is out")

    one.shelf.before = fail_at_times
    answers = asyncio.run(one.all([desk.request(broken[number : number + 3]) for number in range(28)] * 3))
    failed = [answer for answer in answers if not isinstance(answer, Resolved)]
    assert failed
    for error in failed:
        assert isinstance(error, StoreUnavailableError)
        assert (error.status, error.field) == (503, "features.kwargs_data.image")
        assert error.index is not None
    one.shelf.before = lambda _: None
    again = asyncio.run(one.all([desk.request(broken[number : number + 3]) for number in range(28)]))
    assert all(isinstance(answer, Resolved) for answer in again)
    assert one.value("requests_in_flight") == one.value("pixel_bytes_in_flight") == 0


def test_what_nobody_foresaw_is_an_error_of_the_tree(bench: Callable[..., Bench], desk: Any) -> None:
    one = bench()

    def bug(_: str) -> None:
        raise ZeroDivisionError("/some/private/path")

    one.shelf.before = bug
    with pytest.raises(FilmrollError) as caught:
        asyncio.run(one.once(desk.request([desk.picture(2100)])))
    assert "private" not in str(caught.value.wire())
    assert caught.value.index == 0


def test_closing_ends_who_waits(desk: Any) -> None:
    one = Bench(desk, desk.store_dir, readers=1)
    free = threading.Event()
    one.shelf.before = lambda _: free.wait(30)

    async def together() -> list[Resolved | BaseException]:
        requests = [desk.request([desk.picture(2200 + number)]) for number in range(3)]
        running = asyncio.ensure_future(one.all(requests))
        await until(lambda: bool(one.shelf.reads))
        closing = threading.Thread(target=one.resolver.close)
        closing.start()
        free.set()
        answers = await running
        closing.join(30)
        return answers

    answers = asyncio.run(together())
    assert sum(isinstance(answer, EngineUnavailableError) for answer in answers) == 2


def test_a_gate_lets_in_what_fits_and_counts_what_is_shared_once() -> None:
    gate = Gate(10)
    inside: list[str] = []

    async def enter(name: str, things: dict[Any, int], leave: asyncio.Event) -> None:
        async with gate.passed(things):
            inside.append(name)
            await leave.wait()

    async def scene() -> None:
        leave = {name: asyncio.Event() for name in "abcdef"}
        wants = {
            "a": {1: 6},
            "b": {1: 6, 2: 4},
            "c": {3: 1},
            "d": {1: 6},
            "e": {4: 50},
            "f": {5: 1},
        }
        tasks = {}
        for name, things in wants.items():
            tasks[name] = asyncio.ensure_future(enter(name, things, leave[name]))
            await asyncio.sleep(0.01)
        # c waits for room, and d, which would fit, waits behind it.
        assert inside == ["a", "b"]
        leave["a"].set()
        await asyncio.sleep(0.01)
        assert inside == ["a", "b"]
        tasks["c"].cancel()
        await asyncio.sleep(0.01)
        assert inside == ["a", "b", "d"]
        leave["b"].set()
        leave["d"].set()
        await asyncio.sleep(0.01)
        # More than the limit: alone.
        assert inside == ["a", "b", "d", "e"]
        leave["e"].set()
        leave["f"].set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert inside[-1] == "f"

    asyncio.run(scene())
