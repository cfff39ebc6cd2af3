"""How requests to a bucket are sent: in turn, again where that may help, and with errors of our own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from filmroll.errors import StoreUnavailableError

IN_FLIGHT = 32
"""Requests of one process that are under way at once, whatever its number of threads and stores."""

Answer = TypeVar("Answer")

_TRIES = 6
_PAUSE = 0.05
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")

_turns = threading.BoundedSemaphore(IN_FLIGHT)
_process: int | None = None
"""The process that has sent the first request: obstore's threads do not survive a fork."""


def send(verb: str, call: Callable[[], Answer], patience: float) -> Answer:
    """What the call answers; it may be made several times.

    FileNotFoundError passes. Whatever else obstore raises becomes a StoreUnavailableError that names
    no address, bucket or credential to a client.
    """
    _stay_in_process()
    start, tries = time.monotonic(), 1
    while True:
        try:
            with _turns:
                return call()
        except FileNotFoundError as error:
            if any(text in str(error) for text in _NO_BUCKET):
                raise no_bucket(error) from None
            raise FileNotFoundError(_first_line(error)) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreUnavailableError(
                f"the object store does not permit to {verb} the image",
                remedy="Give these credentials the right to get, put, delete and list below the store's prefix",
                private=_first_line(error),
            ) from None
        except (BaseError, ValueError) as error:
            # obstore sends again by itself, but not a removal that got no answer in time, and not where
            # an answer breaks off that says "not found".
            if tries < _TRIES and time.monotonic() - start < patience / 2:
                time.sleep(_PAUSE * 2**tries)
                tries += 1
                continue
            raise StoreUnavailableError(
                f"the object store cannot {verb} the image",
                remedy="Look whether it is up, and at endpoint, region and credentials; http:// needs AWS_ALLOW_HTTP",
                private=_first_line(error),
            ) from None


def no_bucket(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(
        "the store's bucket is not there", remedy="Create it, or mend the store's URL", private=_first_line(error)
    )


def _stay_in_process() -> None:
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise StoreUnavailableError(
            "this process was forked from one that had used an object store",
            remedy="Start processes with spawn or forkserver, or use the store in the child alone",
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
