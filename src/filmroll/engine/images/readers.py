"""Threads that work for requests in turn: a task of each, however many one of them has."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from filmroll.errors import EngineError, EngineUnavailableError, FilmrollError

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Task:
    work: Callable[[], Any]
    done: Future[Any]


class Readers:
    """A pool of threads. A request with 1,000 images holds up another by one image a thread."""

    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._tasks: OrderedDict[Hashable, deque[_Task]] = OrderedDict()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"filmroll-reader-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Hashable, work: Callable[[], Result | Future[Result]]) -> Future[Result]:
        """Have work done when it is the request's turn; what is cancelled before is left out.

        Work that answers with a future is done when that is; the thread does not wait for it.
        """
        task = _Task(work, Future())
        with self._changed:
            if self._closed:
                raise EngineUnavailableError("the engine is shutting down")
            self._tasks.setdefault(request, deque()).append(task)
            self._changed.notify()
        return task.done

    def close(self) -> None:
        """Finish what has begun; the rest fails with EngineUnavailableError."""
        with self._changed:
            self._closed = True
            left = [task for tasks in self._tasks.values() for task in tasks]
            self._tasks.clear()
            self._changed.notify_all()
        for task in left:
            with suppress(InvalidStateError):
                task.done.set_exception(EngineUnavailableError("the engine is shutting down"))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            if task.done.set_running_or_notify_cancel():
                _do(task)
            # A picture must not live until the next task comes.
            del task

    def _next(self) -> _Task | None:
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._closed)
            if not self._tasks:
                return None
            request, tasks = self._tasks.popitem(last=False)
            task = tasks.popleft()
            if tasks:
                self._tasks[request] = tasks
            return task


def _do(task: _Task) -> None:
    try:
        result = task.work()
    except Exception as error:  # noqa: BLE001 _fail logs what nobody foresaw
        _fail(task.done, error)
        return
    if isinstance(result, Future):
        result.add_done_callback(lambda done: _hand_on(done, task.done))
    else:
        task.done.set_result(result)


def _hand_on(done: Future[Any], to: Future[Any]) -> None:
    error = done.exception()
    if error is None:
        to.set_result(done.result())
    else:
        _fail(to, error)


def _fail(done: Future[Any], error: BaseException) -> None:
    """Whoever waits gets an error that says nothing private."""
    if not isinstance(error, FilmrollError):
        log.error("a reader failed in a way nobody foresaw", exc_info=error)
        problem, remedy = "the request could not be prepared", "The engine's log says why"
        error = EngineError(problem, remedy=remedy, private=str(error))
    done.set_exception(error)
