"""The cache: never more bytes than its bound, never two builds of one key at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from filmroll.errors import ImageFormatError
from filmroll.materialize.cache import Cache


@dataclass(frozen=True)
class Item:
    name: object
    nbytes: int


def test_the_oldest_goes_first() -> None:
    cache: Cache[str, Item] = Cache(30)
    for name in "abc":
        cache.get(name, lambda name=name: Item(name, 10))
    cache.get("a", unexpected)
    cache.get("d", lambda: Item("d", 10))
    counts = cache.counts()
    assert (counts.hits, counts.misses, counts.evicted, counts.items, counts.nbytes) == (1, 4, 1, 3, 30)
    cache.get("a", unexpected)
    cache.get("c", unexpected)
    assert cache.get("b", lambda: Item("again", 10)).name == "again"


def test_an_item_larger_than_the_bound_is_passed_through_and_evicts_nothing() -> None:
    cache: Cache[str, Item] = Cache(30)
    cache.get("small", lambda: Item("small", 30))
    assert cache.get("large", lambda: Item(1, 31)).name == 1
    assert cache.get("large", lambda: Item(2, 31)).name == 2
    cache.get("small", unexpected)
    assert (cache.counts().evicted, cache.counts().nbytes) == (0, 30)


def test_a_bound_of_zero_keeps_nothing() -> None:
    cache: Cache[str, Item] = Cache(0)
    assert [cache.get("a", lambda number=number: Item(number, 1)).name for number in range(2)] == [0, 1]


def test_one_build_serves_all_who_wait() -> None:
    cache: Cache[str, Item] = Cache(100)
    builds: list[int] = []
    started, finish = threading.Event(), threading.Event()

    def build() -> Item:
        builds.append(1)
        started.set()
        assert finish.wait(10)
        return Item("built", 10)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.get, "key", build)
        assert started.wait(10)
        others = [pool.submit(cache.get, "key", build) for _ in range(7)]
        wait_until(lambda: cache.counts().hits == 7)
        finish.set()
        items = {id(future.result(10)) for future in [first, *others]}
    assert len(items) == len(builds) == 1
    assert (cache.counts().hits, cache.counts().misses) == (7, 1)


def test_other_keys_do_not_wait_for_a_build() -> None:
    cache: Cache[str, Item] = Cache(100)
    started, finish = threading.Event(), threading.Event()

    def slow() -> Item:
        started.set()
        assert finish.wait(10)
        return Item("slow", 10)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cache.get, "slow", slow)
        assert started.wait(10)
        assert cache.get("quick", lambda: Item("quick", 1)).name == "quick"
        finish.set()
        assert running.result(10).name == "slow"


@pytest.mark.parametrize("error", [ImageFormatError("broken"), KeyboardInterrupt()])
def test_a_failure_reaches_every_waiter_and_is_not_kept(error: BaseException) -> None:
    cache: Cache[str, Item] = Cache(100)
    started, finish = threading.Event(), threading.Event()

    def fail() -> Item:
        started.set()
        assert finish.wait(10)
        raise error

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(cache.get, "key", fail)]
        assert started.wait(10)
        futures += [pool.submit(cache.get, "key", unexpected) for _ in range(3)]
        wait_until(lambda: cache.counts().hits == 3)
        finish.set()
        assert [type(future.exception(10)) for future in futures] == [type(error)] * 4
    assert cache.get("key", lambda: Item("next", 10)).name == "next"


class CacheMachine(RuleBasedStateMachine):
    """Against a model of the law: the bytes counted are those held, and never more than the bound."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Cache[int, Item] = Cache(50)
        self.calls = self.builds = 0

    @rule(key=st.integers(0, 9), size=st.integers(0, 60))
    def get(self, key: int, size: int) -> None:
        def build() -> Item:
            self.builds += 1
            return Item(key, size)

        self.calls += 1
        assert self.cache.get(key, build).name == key

    @rule(key=st.integers(0, 9))
    def fail(self, key: int) -> None:
        def build() -> Item:
            self.builds += 1
            raise ImageFormatError("broken")

        self.calls += 1
        held = key in self.cache._items
        try:
            self.cache.get(key, build)
        except ImageFormatError:
            assert not held
        else:
            assert held

    @invariant()
    def bounded_and_counted(self) -> None:
        counts = self.cache.counts()
        held = sum(item.nbytes for item in self.cache._items.values())
        assert held == counts.nbytes <= self.cache.limit
        assert counts.items == len(self.cache._items)
        assert (counts.misses, counts.hits) == (self.builds, self.calls - self.builds)
        assert not self.cache._building


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=60), st.integers(0, 80))
def test_the_bound_holds_under_threads(work: list[tuple[int, int]], limit: int) -> None:
    cache: Cache[int, Item] = Cache(limit)
    with ThreadPoolExecutor(4) as pool:
        items = list(pool.map(lambda task: cache.get(task[0], lambda: Item(task[0], task[1])), work))
    assert [item.name for item in items] == [key for key, _ in work]
    counts = cache.counts()
    assert sum(item.nbytes for item in cache._items.values()) == counts.nbytes <= limit
    assert counts.hits + counts.misses == len(work)


def unexpected() -> Item:
    raise AssertionError("this key must not be built")


def wait_until(condition: object) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen within ten seconds")
