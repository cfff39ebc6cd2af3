"""The model thread: takes rows that wait, decodes them together, lets finished ones go.

Rows wait by priority, and of one priority as they came.

Batching is continuous: rows that arrive while others decode are prefilled by themselves and join at
the next step, where the model's cache is of the plain kind; else they wait for the batch to end.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Any, TypeVar

import torch

from filmroll.engine.embedded.batch import Batch, Row
from filmroll.engine.statistics import Statistics
from filmroll.errors import EngineError, EngineUnavailableError, FilmrollError
from filmroll.families.base import Family

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many rows go together, and how long the first waits for others."""

    rows: int = 64
    prefill_tokens: int = 16_384
    """Padded tokens of one prefill; a single longer prompt still goes through, alone."""
    wait_s: float = 0.002
    """An idle engine starts when no row has arrived for this long, at the latest after ten times that."""


class ModelLoop:
    """Owns the model: nobody else runs it or changes its weights."""

    def __init__(
        self,
        model: Any,
        family: Family,
        statistics: Statistics,
        *,
        limits: BatchLimits,
        threads: int | None = None,
        seed: int | None = None,
    ) -> None:
        self._model = model
        self._family = family
        self._statistics = statistics
        self._limits = limits
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Row]] = []
        """A heap: by priority, and then as they came."""
        self._arrivals = count()
        self._orders: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closed = False
        self._lost: FilmrollError | None = None
        self.ended: Future[None] = Future()
        """Done when nobody runs the model any more; an error where the GPU has failed it."""
        self._batch: Batch | None = None
        self.version = 0
        self._thread = threading.Thread(target=self._run, args=(threads,), name="filmroll-model", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> None:
        """Let a row wait for its turn; its `done` will hold it, finished, or an error."""
        with self._changed:
            self._refuse_if_closed()
            row.arrival = next(self._arrivals)
            self._queue(row)
            self._changed.notify()

    def _queue(self, row: Row) -> None:
        heapq.heappush(self._waiting, (row.priority, row.arrival, row))

    def between_batches(self, work: Callable[[], Result]) -> Future[Result]:
        """Run `work` on the model thread once the rows in flight are done; newer rows wait for it."""
        future: Future[Result] = Future()
        with self._changed:
            self._refuse_if_closed()
            self._orders.append((work, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Stop after the current step; whatever is unfinished fails with EngineUnavailableError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise self._unavailable()

    def _unavailable(self) -> FilmrollError:
        return self._lost or EngineUnavailableError("the engine is shutting down")

    def _run(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                while not self._closed:
                    self._give_orders()
                    self._admit(self._newcomers())
                    self._step()
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody waits forever for a thread that is gone."""
        with self._changed:
            self._closed = True
            error = self._unavailable()
            _fail([*(self._batch.rows if self._batch else ()), *(row for *_, row in self._waiting)], error)
            for _, future in self._orders:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
        if self._lost is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(self._lost)

    def _give_orders(self) -> None:
        while self._batch is None and self._orders:
            work, future = self._orders.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 whoever gave the order gets it
                self._consider(error)
                future.set_exception(error)

    def _newcomers(self) -> list[Row]:
        """Rows that can be prefilled now; an idle engine waits for the first, then a little for its company."""
        with self._changed:
            if self._batch is None:
                self._changed.wait_for(lambda: self._waiting or self._orders or self._closed)
                self._await_company()
            elif not self._batch.can_join:
                return []
            if self._orders:
                return []
            return self._take(self._limits.rows - (len(self._batch.rows) if self._batch else 0))

    def _await_company(self) -> None:
        latest = time.monotonic() + 10 * self._limits.wait_s
        while len(self._waiting) < self._limits.rows and time.monotonic() < latest:
            before = len(self._waiting)
            self._changed.wait(self._limits.wait_s)
            if len(self._waiting) == before or self._orders or self._closed:
                return

    def _take(self, most: int) -> list[Row]:
        taken: list[Row] = []
        longest = 0
        while self._waiting and len(taken) < most:
            longest = max(longest, len(self._waiting[0][-1].prompt))
            if taken and longest * (len(taken) + 1) > self._limits.prefill_tokens:
                break
            *_, row = heapq.heappop(self._waiting)
            if not row.done.done():
                taken.append(row)
        return taken

    def _admit(self, rows: list[Row]) -> None:
        """Prefill rows and add them to the batch. If that fails, each by itself, so that only the guilty fail."""
        alone: list[Row] = []
        if not rows:
            return
        try:
            batch = Batch.prefill(self._model, self._family, rows)
        except Exception as error:
            log.exception("a prefill of %d prompts failed", len(rows))
            if self._consider(error) or len(rows) == 1:
                _fail(rows, _typed(error))
            else:
                alone.extend(rows)
        else:
            self._statistics.add(batches=1)
            self._add(batch)
        for row in alone:
            self._admit([row])

    def _add(self, batch: Batch) -> None:
        if self._batch is None:
            self._batch = batch
        elif self._batch.can_join:
            both = [*self._batch.rows, *batch.rows]
            try:
                self._batch.join(batch)
            except Exception as error:  # noqa: BLE001 _lose logs it
                self._lose(both, error)
        else:
            with self._changed:
                for row in batch.rows:
                    self._queue(row)

    def _step(self) -> None:
        """One token for every row of the batch."""
        batch = self._batch
        if batch is None:
            return
        try:
            batch.sample(self._generator)
            self._statistics.add(generated_tokens=len(batch.rows), steps=1)
            going_on = [index for index, row in enumerate(batch.rows) if not self._settled(row)]
            if not going_on:
                self._batch = None
                return
            if len(going_on) < len(batch.rows):
                batch.keep(going_on)
            batch.advance()
        except Exception as error:  # noqa: BLE001 _lose logs it
            self._lose(batch.rows, error)

    def _lose(self, rows: list[Row], error: Exception) -> None:
        """Give up the batch, after an error in it."""
        log.error("a batch of %d rows failed in the model", len(rows), exc_info=error)
        self._consider(error)
        _fail(rows, _typed(error))
        self._batch = None

    def _consider(self, error: Exception) -> bool:
        """Whether it is the GPU that has failed: then it does nothing more for this process, which has to end."""
        if not _of_the_gpu(error):
            return False
        self._lost = _typed(error)
        self._closed = True
        return True

    def _settled(self, row: Row) -> bool:
        """Whether the row is done: finished, given up by its client, or without a meaningful token."""
        if row.done.done():
            return True
        if not isfinite(row.logprobs[-1]):
            _fail([row], EngineError("the model's logits are not finite", remedy="Look at the weights it was given"))
            return True
        if row.heard is not None:
            row.heard(row.tokens[-1], row.logprobs[-1])
        if row.finish_reason is None:
            return False
        row.version = self.version
        with suppress(InvalidStateError):
            row.done.set_result(row)
        return True


def _fail(rows: Iterable[Row], error: FilmrollError) -> None:
    for row in rows:
        with suppress(InvalidStateError):
            row.done.set_exception(error.at())


def _of_the_gpu(error: Exception) -> bool:
    # Want of memory is another error; and torch before 2.8 has no name for this one.
    return isinstance(error, getattr(torch, "AcceleratorError", ()))


def _typed(error: Exception) -> FilmrollError:
    if isinstance(error, FilmrollError):
        return error
    if _of_the_gpu(error):
        return EngineUnavailableError(
            "the engine's GPU has failed", remedy="Start the engine again; its log says why", private=str(error)
        )
    return EngineError(
        "the model failed on this request", remedy="The engine goes on; its log says why", private=str(error)
    )
