"""What the store relies on S3 for, asked of each server without the store in between.

docs/dependencies.md has the table of what was seen. A server that fails one of these keeps no store.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from filmroll.store.shelves.buckets import connect, read_url
from tests.store.places import SERVERS, Place
from tests.store.servers.endpoint import BUCKET, S3Server

RACES = 20
RACERS = 32


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> S3Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(request: pytest.FixtureRequest, server: S3Server) -> S3Store:
    """In an empty bucket of its own."""
    place = Place(request)
    server.make_bucket(place.name)
    place.use(server)
    return connect(read_url(f"s3://{place.name}"), 30)


def test_a_key_is_created_once(client: S3Store) -> None:
    client.put("one", b"first", mode="create")
    for text in (b"first", b"second"):
        with pytest.raises(AlreadyExistsError, match="412"):
            client.put("one", text, mode="create")
    assert client.get("one").bytes() == b"first"
    client.delete("one")
    client.put("one", b"third", mode="create")


def test_of_many_creators_one_wins_every_time(client: S3Store) -> None:
    start = threading.Barrier(RACERS)

    def create(race: int, number: int) -> bool:
        start.wait()
        try:
            client.put(f"race-{race}", b"%d" % number, mode="create")
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(RACERS) as pool:
        for race in range(RACES):
            won = list(pool.map(create, [race] * RACERS, range(RACERS)))
            assert won.count(True) == 1
            assert client.get(f"race-{race}").bytes() == b"%d" % won.index(True)


def test_an_object_is_written_anew_only_if_it_is_the_one_that_was_read(client: S3Store) -> None:
    client.put("one", b"first")
    stale = _accepted_tag(client)
    client.put("one", b"second")
    with pytest.raises(PreconditionError):
        client.put("one", b"third", mode={"e_tag": stale})
    assert client.get("one").bytes() == b"second"
    tag = _accepted_tag(client)
    client.delete("one")
    with pytest.raises(PreconditionError):
        client.put("one", b"third", mode={"e_tag": tag})
    with pytest.raises(FileNotFoundError):
        client.head("one")


def _accepted_tag(client: S3Store) -> str:
    """The object's tag as this server takes it, in quotes or bare; the object is written anew, unchanged."""
    found = client.get("one")
    data = bytes(found.bytes())
    for tag in (found.meta["e_tag"], found.meta["e_tag"].strip('"')):
        try:
            client.put("one", data, mode={"e_tag": tag})
        except PreconditionError:
            continue
        return tag
    raise AssertionError("the server takes its own tag in no form")


def test_writing_anew_moves_the_time_and_copying_onto_itself_is_refused(client: S3Store) -> None:
    client.put("one", b"first")
    before = client.head("one")["last_modified"]
    time.sleep(1.1)  # Times are told in whole seconds.
    with pytest.raises(GenericError, match="InvalidRequest"):
        client.copy("one", "one")
    assert client.head("one")["last_modified"] == before
    _accepted_tag(client)
    assert client.head("one")["last_modified"] > before


def test_what_was_done_is_seen_at_once(client: S3Store) -> None:
    for number in range(20):
        client.put("one", b"%d" % number)
        assert client.get("one").bytes() == b"%d" % number
        assert [item["path"] for page in client.list() for item in page] == ["one"]
        client.copy("one", "two")
        assert client.get("two").bytes() == b"%d" % number
        client.delete("one")
        client.delete("two")
        with pytest.raises(FileNotFoundError):
            client.get("one")
        assert [item["path"] for page in client.list() for item in page] == []


def test_listings_go_on_behind_a_key_and_tell_the_times_of_heads(client: S3Store) -> None:
    names = [f"folder/{number:02}" for number in range(12)]
    for name in (*names, "folders/one", "fold"):
        client.put(name, name.encode())
    listed = [item for page in client.list("folder") for item in page]
    assert [item["path"] for item in listed] == names
    rest = [item["path"] for page in client.list("folder", offset=names[4]) for item in page]
    assert rest == names[5:]
    for item in listed:
        assert abs(item["last_modified"] - client.head(item["path"])["last_modified"]) < timedelta(seconds=1)


def test_part_of_an_object_is_sent_as_asked(client: S3Store) -> None:
    client.put("one", bytes(range(256)))
    assert client.get_range("one", start=100, end=200) == bytes(range(100, 200))


def test_errors_have_their_codes(client: S3Store) -> None:
    with pytest.raises(FileNotFoundError, match=r"(?s)404 Not Found.*NoSuchKey"):
        client.get("one")
    with pytest.raises(FileNotFoundError, match="NoSuchKey"):
        client.copy("one", "two")
    away = connect(read_url("s3://no-such-bucket"), 30)
    for act in (lambda: away.get("one"), lambda: away.put("one", b"", mode="create"), lambda: away.put("one", b"")):
        with pytest.raises(FileNotFoundError, match=r"(?s)404 Not Found.*NoSuchBucket"):
            act()
    with pytest.raises(BaseError, match="NoSuchBucket"):
        list(away.list())


@pytest.mark.ceph
def test_wrong_keys_are_refused(request: pytest.FixtureRequest, ceph: S3Server) -> None:
    """moto looks at no signature."""
    for wrong in (replace(ceph, secret="wrong"), replace(ceph, key="nobody")):  # noqa: S106 - of a test server
        place = Place(request)
        place.use(wrong)
        client = connect(read_url(f"s3://{BUCKET}"), 30)
        for act in (lambda: client.get("one"), lambda: client.put("one", b""), lambda: client.delete("one")):  # noqa: B023
            with pytest.raises((PermissionDeniedError, UnauthenticatedError), match="403"):
                act()
