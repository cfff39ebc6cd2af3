"""Around a request that filmroll serves: it is counted, and whatever goes wrong becomes an answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filmroll.engine.http import error_answer
from filmroll.engine.statistics import Statistics
from filmroll.engine.vllm.inside.application import answer_errors
from filmroll.errors import FilmrollError

log = logging.getLogger(__name__)


@contextmanager
def foreseen() -> Iterator[None]:
    """Whatever goes wrong inside becomes an error that says nothing private."""
    try:
        yield
    except FilmrollError:
        raise
    except Exception:
        log.exception("a request with references failed in a way nobody foresaw")
        raise FilmrollError("the engine failed on this request; its log says why") from None


@contextmanager
def counted(raw_request: Any, statistics: Statistics) -> Iterator[None]:
    """Around a request that filmroll serves: it is counted, and a FilmrollError becomes its answer, and is counted."""
    answer_errors(raw_request, answered)
    statistics.add(requests=1)
    try:
        yield
    except FilmrollError as error:
        statistics.reject(error.code)
        raise


async def answered(_raw_request: Any, error: FilmrollError) -> Any:
    """The answer to a request that was refused."""
    if error.status >= 500:
        log.warning("a request with references failed: %s", error)
    return error_answer(error)
