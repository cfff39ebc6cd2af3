"""Stores in buckets: their URLs, and what happens when the network or the server fails, over real HTTP."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import pytest

from filmroll.errors import ConfigError, ImageDamagedError, StoreUnavailableError
from filmroll.image import ImageRef
from filmroll.store import Store, open_store
from filmroll.store.ingest.canonical import canonical
from filmroll.store.keys import object_key, object_name
from filmroll.store.shelves import objects
from filmroll.store.shelves.objects import ObjectShelf
from filmroll.store.shelves.requests import IN_FLIGHT
from tests.store.pictures import noise
from tests.store.places import SERVERS, Place
from tests.store.servers.endpoint import BUCKET, S3Server, free_port
from tests.store.servers.faulty import Fault, FaultyProxy, faulty
from tests.store.servers.moto import KEYS_OF_A_PAGE

Answer = TypeVar("Answer")

PATIENCE = 4.0
"""Seconds: short, so that a stalled request can be waited for, and long for a busy machine."""

NO_PATIENCE = 1.0
"""For requests that fail anyway."""


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> S3Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with faulty(server) as proxy:
        yield proxy


@pytest.fixture
def url(request: pytest.FixtureRequest, server: S3Server) -> str:
    return Place(request).bucket(server)


@pytest.fixture
def through(url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose requests pass the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.server.url)
    return Store(ObjectShelf(url, patience=PATIENCE))


@pytest.fixture
def direct(url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same store, past the proxy."""
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", server.url)
        return open_store(url)


def key_of(ref: ImageRef) -> str:
    return object_key(f"{ref.sha256}.png")


def keys(store: Store) -> list[str]:
    return sorted(item.key for item in store.shelf.items())


# URLs


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/a/b.c-d_e=1/", "s3://bucket/a/b.c-d_e=1"),
        ("s3a://bucket/prefix", "s3://bucket/prefix"),
        ("gs://bucket/prefix", "gs://bucket/prefix"),
        ("az://container/prefix", "az://container/prefix"),
        ("azure://container/prefix", "az://container/prefix"),
        ("abfss://container/prefix", "az://container/prefix"),
        ("memory://name", "memory://name"),
    ],
)
def test_a_reference_names_bucket_and_key_however_the_store_was_spelled(
    url: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.0.0.1:9000")
    store = open_store(url)
    assert store.shelf.uri("ab/one.png") == f"{written}/ab/one.png"
    shelf = pickle.loads(pickle.dumps(ObjectShelf(url, patience=7)))
    assert shelf.uri("ab/one.png") == f"{written}/ab/one.png"
    assert shelf.patience == 7


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3:bucket",
        "s3:/bucket",
        "s3://key:secret@bucket/prefix",
        "s3://secret@bucket",
        "abfss://container@account.dfs.core.windows.net/prefix",
        "s3://bucket/prefix?endpoint=http://secret",
        "s3://bucket?x=secret",
        "s3://bucket/prefix#secret",
        "s3://bucket:9000/prefix",
        "s3://buck et/prefix",
        "s3://bucket/../other",
        "s3://bucket/a/./b",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bucket/a%2e",
        "s3://bucket/é",
        "s3://bucket/a\nb",
        "s3://bucket/\0",
        "s3://bucket/" + "x" * 2000,
        "s3://-bucket",
        "memory:name",
    ],
)
def test_a_url_that_holds_anything_else_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_what_the_environment_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "nonsense")
    with pytest.raises(ConfigError):
        open_store("s3://bucket")


def test_without_obstore_the_extra_is_named() -> None:
    check = """
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "obstore":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Without())
import filmroll
filmroll.open_store("/tmp/nothing")
try:
    filmroll.open_store("s3://bucket")
except filmroll.FilmrollError as error:
    sys.exit("filmroll[objects]" not in str(error) or type(error).__name__ != "ConfigError")
sys.exit(1)
"""
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_core_imports_without_obstore() -> None:
    check = "import sys, filmroll; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# Faults

FAULTS = [*Fault, 500, 502, 503, 429]

every_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: getattr(fault, "name", fault))


@every_fault
def test_a_fault_that_passes_is_not_noticed(
    through: Store, direct: Store, proxy: FaultyProxy, fault: Fault | int
) -> None:
    def failing_once(call: Callable[[], Answer]) -> Answer:
        proxy.plan.append(fault)
        answer = call()
        assert not proxy.plan
        return answer

    ref = failing_once(lambda: through.put(noise(30, 30)))
    assert keys(direct) == [key_of(ref)]
    assert failing_once(lambda: through.read(ref)) == direct.read(ref) == canonical(noise(30, 30)).data
    shelf = through.shelf
    assert failing_once(lambda: [item.key for item in shelf.items()]) == [key_of(ref)]
    assert failing_once(lambda: shelf.stat(key_of(ref))).nbytes == ref.nbytes
    assert failing_once(lambda: shelf.touch(key_of(ref)))
    assert failing_once(lambda: shelf.move(key_of(ref), "trash/one")).nbytes == ref.nbytes
    assert failing_once(lambda: shelf.copy("trash/one", "trash/two"))
    failing_once(lambda: shelf.delete("trash/one"))
    assert keys(direct) == ["trash/two"]
    # Whose answer was lost, finds his own object: to him the key is taken.
    assert failing_once(lambda: shelf.create("ab/one", b"one")) is (fault not in DONE_ALL_THE_SAME)
    assert direct.shelf.read("ab/one", 3) == b"one"


DONE_ALL_THE_SAME = {Fault.LOSE_ANSWER, Fault.CUT_ANSWER, Fault.STALL_ANSWER}


@every_fault
def test_a_fault_that_stays_is_a_typed_error_in_time_and_leaves_nothing_half_there(
    through: Store, direct: Store, proxy: FaultyProxy, fault: Fault | int
) -> None:
    kept = direct.put(noise(30, 30))
    good = direct.read(kept)
    store = Store(ObjectShelf(through.shelf.url, patience=NO_PATIENCE))
    shelf, key = store.shelf, key_of(kept)
    proxy.rest = fault
    with ThreadPoolExecutor(12) as pool:
        start = time.monotonic()
        results = [
            pool.submit(*call)
            for call in (
                (store.put, noise(30, 30, seed=1)),
                (store.read, kept),
                (lambda: list(shelf.items()),),
                (shelf.stat, key),
                (shelf.touch, key),
                (shelf.copy, key, "trash/one"),
                (shelf.move, key, "trash/two"),
                (shelf.delete, "ab/nothing"),
                (shelf.create, "ab/new", b"x" * 1000),
                (shelf.replace, "ab/other", b"x" * 1000),
                (shelf.now,),
            )
        ]
        errors = [result.exception() for result in results]
        # Twice the patience; what comes on top is for a slow machine.
        assert time.monotonic() - start < 2 * NO_PATIENCE + 30
    for error in errors:
        assert isinstance(error, StoreUnavailableError), error
        for secret in (proxy.server.url, "127.0.0.1", proxy.server.key, proxy.server.secret, BUCKET):
            assert secret not in str(error.wire())
    proxy.rest = None
    for item in direct.shelf.items():
        # Requests whose answers were lost have been carried out: what is there is whole.
        assert direct.shelf.read(item.key, 1 << 20) in (good, b"x" * 1000, b"", canonical(noise(30, 30, seed=1)).data)
    ref = through.put(noise(30, 30, seed=1))
    assert direct.read(ref) == through.read(ref)
    assert through.read(kept) == direct.read(kept) == good


def test_a_listing_that_breaks_off_in_the_middle_goes_on_where_it_was(
    through: Store, direct: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PAGE", KEYS_OF_A_PAGE)
    names = [f"ab/{number:02}" for number in range(4 * KEYS_OF_A_PAGE)]
    for name in names:
        direct.shelf.create(name, b"")
    proxy.plan.extend([None, None, Fault.CUT_ANSWER])
    assert [item.key for item in through.shelf.items()] == names


def test_a_store_that_is_down_is_reported_in_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    store = Store(ObjectShelf(url, patience=NO_PATIENCE))
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        store.put(noise(9, 9))
    assert NO_PATIENCE <= time.monotonic() - start < 2 * NO_PATIENCE + 30


def test_racing_writers_through_a_bad_network_all_succeed_and_write_one_object(
    through: Store, direct: Store, proxy: FaultyProxy
) -> None:
    stores = [through, pickle.loads(pickle.dumps(through))]
    for seed in range(6):
        chance = random.Random(seed)
        proxy.plan.extend(chance.choices([None, *RACED], k=6))
        with ThreadPoolExecutor(2) as pool:
            refs = list(pool.map(lambda store, seed=seed: store.put(noise(30, 30, seed=seed)), stores))
        assert refs[0] == refs[1]
        assert direct.read(refs[0]) == canonical(noise(30, 30, seed=seed)).data
        proxy.plan.clear()
    assert len(keys(direct)) == 6


RACED = [Fault.REFUSE, Fault.LOSE_REQUEST, Fault.CUT_REQUEST, Fault.LOSE_ANSWER, Fault.CUT_ANSWER, 503]


def test_an_object_that_changes_under_a_broken_read_is_noticed(
    through: Store, direct: Store, proxy: FaultyProxy
) -> None:
    """What a broken answer lacked is fetched on its own, perhaps from another object than its beginning."""
    ref = direct.put(noise(30, 30))
    good = direct.read(ref)
    proxy.plan.append(Fault.CUT_ANSWER)
    changes = iter([lambda: direct.shelf.replace(key_of(ref), bytes(len(good)))])
    proxy.between = lambda: next(changes, lambda: None)()
    with pytest.raises(ImageDamagedError):
        through.read(ref)


# Permission, buckets, processes


def test_missing_rights_are_said(url: str, proxy: FaultyProxy, through: Store) -> None:
    for status in (401, 403):
        proxy.plan.append(status)
        with pytest.raises(StoreUnavailableError, match="permit") as caught:
            through.put(noise(9, 9))
        assert "127.0.0.1" not in str(caught.value.wire())
        assert not proxy.plan


def test_a_bucket_that_is_not_there_is_said(url: str) -> None:
    store = open_store("s3://no-such-bucket/images")
    for act in (
        lambda: store.put(noise(9, 9)),
        lambda: store.shelf.replace("ab/one", b""),
        lambda: store.shelf.read("ab/one", 10),
        lambda: store.shelf.delete("ab/one"),
        store.shelf.now,
    ):
        with pytest.raises(StoreUnavailableError, match="bucket is not there") as caught:
            act()
        assert "no-such-bucket" not in str(caught.value.wire())


def test_whoever_writes_is_never_told_that_nothing_is_found(through: Store, proxy: FaultyProxy) -> None:
    """A server may say no more than that of a bucket that is not there."""
    proxy.rest = 404
    for act in (through.shelf.create, through.shelf.replace):
        with pytest.raises(StoreUnavailableError, match="bucket is not there"):
            act("ab/one", b"")
    assert through.shelf.stat("ab/one") is None
    through.shelf.delete("ab/one")


def test_one_object_is_removed_by_one_request_of_its_own(through: Store, proxy: FaultyProxy) -> None:
    """Not every server that speaks S3 removes many at once."""
    through.shelf.create("ab/one", b"")
    through.shelf.delete("ab/one")
    assert [line.partition(" ")[0] for line in proxy.seen] == ["PUT", "DELETE"]


def test_no_more_requests_are_under_way_than_promised(through: Store, proxy: FaultyProxy) -> None:
    with ThreadPoolExecutor(3 * IN_FLIGHT) as pool:
        list(pool.map(lambda number: through.shelf.create(f"ab/{number}", b""), range(6 * IN_FLIGHT)))
    assert IN_FLIGHT // 4 < proxy.most_at_once <= IN_FLIGHT


def test_a_forked_process_is_told_instead_of_hanging(url: str) -> None:
    store = open_store(url)
    ref = store.put(noise(9, 9))
    answers = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        for opened in (store, open_store(url)):
            try:
                opened.read(ref)
            except StoreUnavailableError as error:
                answers.put(str(error))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    ended = process.exitcode
    process.kill()
    assert ended == 0
    assert all("fork" in answers.get() for _ in range(2))
    assert store.read(ref)


def _put_in_another_process(url: str, environment: dict[str, str]) -> ImageRef:
    os.environ.update(environment)
    return open_store(url).put(noise(9, 9))


def test_a_spawned_process_finds_the_same_store(url: str, server: S3Server) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        ref = pool.submit(_put_in_another_process, url, server.environment).result()
    assert open_store(url).read(ref)
    assert open_store(url).put(noise(9, 9)) == ref


# What others do in between


def then(shelf: ObjectShelf, verb: str, meddle: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """After each request of that kind, somebody else does something."""
    send = type(shelf)._send

    def sent(asked: str, call: Callable[[], Answer]) -> Answer:
        answer = send(shelf, asked, call)
        if asked == verb:
            meddle()
        return answer

    monkeypatch.setattr(shelf, "_send", sent)


def test_what_is_put_while_it_is_moved_stays(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mover, other = ObjectShelf(url), ObjectShelf(url)
    mover.create("ab/one", b"damaged")
    then(mover, "keep", lambda: other.replace("ab/one", b"mended"), monkeypatch)
    mover.move("ab/one", "quarantine/one")
    assert other.read("ab/one", 10) == b"mended"
    assert other.read("quarantine/one", 10) == b"damaged"


def test_a_touch_brings_back_nothing_that_was_removed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toucher, other = ObjectShelf(url), ObjectShelf(url)
    toucher.create("ab/one", b"text")
    then(toucher, "read", lambda: other.delete("ab/one"), monkeypatch)
    assert not toucher.touch("ab/one")
    assert other.stat("ab/one") is None


def test_a_touch_undoes_no_mending(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toucher, other = ObjectShelf(url), ObjectShelf(url)
    toucher.create("ab/one", b"damaged")
    then(toucher, "read", lambda: other.replace("ab/one", b"mended"), monkeypatch)
    assert toucher.touch("ab/one")
    assert other.read("ab/one", 10) == b"mended"


def test_what_is_mended_right_before_its_damage_is_removed_is_not_lost(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bucket here removes an object only if it is still the same: the mend itself goes with the damage."""
    reader, mender = open_store(url), open_store(url)
    ref = reader.put(noise(9, 9))
    key = object_key(object_name(ref.sha256, ref.media_type))
    mender.shelf.replace(key, b"damaged")
    delete = reader.shelf.delete

    def mended_first(key: str) -> None:
        assert mender.put(noise(9, 9)) == ref
        delete(key)

    monkeypatch.setattr(reader.shelf, "delete", mended_first)
    with suppress(ImageDamagedError):
        reader.read(ref)
    assert mender.shelf.stat(key) is None
    assert len(open_store(url).read(ref)) == ref.nbytes
