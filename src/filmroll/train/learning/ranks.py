"""The processes that train one model together, and how they speak: rank 0 says what is done, all do it.

Gradients and parameters go their own way (`sharding.py`); here is what is said beside them, always over
gloo and always as bytes. Whoever waits for the next order may wait for hours. Whoever is in the middle
of something waits for the others as long as `PATIENCE`, and not at all where one of them has died.
"""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from filmroll.errors import FilmrollError, PeerError, TrainingError, every_error
from filmroll.materialize.device import usable_device
from filmroll.wire.packed import Failure, failure, pack, raised, unpack

PATIENCE = datetime.timedelta(minutes=10)
"""How long a rank in the middle of a step waits for another that is alive and says nothing."""
_FOR_AN_ORDER = datetime.timedelta(days=365)
GRACE = 20.0
"""Seconds in which whoever started the ranks ends those that have lost one."""
_ERRORS = {kind.code: kind for kind in every_error()}
_log = logging.getLogger(__name__)


class Ranks:
    """This process among those that train together; alone, it is rank 0 of 1 and nothing is sent.

    An error inside `agreeing` is raised on every rank, and they go on together. After any other error
    they are `out_of_step`: this process has to end, and whoever started them ends the others.
    """

    def __init__(self, rank: int = 0, count: int = 1, orders: Any = None, grace: float = GRACE) -> None:
        self.rank = rank
        self.count = count
        self.out_of_step = False
        self._orders = orders
        self._grace = grace
        self._agreed: BaseException | None = None

    @classmethod
    def join(cls, device: str = "cpu", grace: float = GRACE) -> Ranks:
        """Meet the others, if torchrun has started this process: the environment says who they are.

        `grace` is how long one that has lost another waits to be ended before it speaks.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(usable_device(f"cuda:{os.environ['LOCAL_RANK']}"))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
        orders = dist.new_group(backend="gloo", timeout=_FOR_AN_ORDER)
        return cls(dist.get_rank(), dist.get_world_size(), orders, grace)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone speaks with other processes and renames folders."""
        return self.rank == 0

    def order(self, said: bytes = b"") -> bytes:
        """What rank 0 says is to be done next; the others wait for it."""
        return self._broadcast(said, 0, self._orders)

    def broadcast(self, said: bytes = b"", *, of: int = 0) -> bytes:
        """What that rank says, on all of them."""
        return self._broadcast(said, of, None)

    def _broadcast(self, said: bytes, of: int, group: Any) -> bytes:
        if self.count == 1:
            return said
        size = torch.tensor([len(said)])
        dist.broadcast(size, of, group=group)
        data = _tensor(said) if self.rank == of else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, of, group=group)
        return bytes(data.numpy())

    def scatter(self, parts: Sequence[bytes] = ()) -> bytes:
        """Each rank's part of what rank 0 has."""
        if self.count == 1:
            return parts[0]
        sizes = torch.tensor([len(part) for part in parts] or [0] * self.count)
        dist.broadcast(sizes, 0)
        if self.leads:
            for rank, part in enumerate(parts[1:], 1):
                dist.send(_tensor(part), rank)
            return parts[0]
        data = torch.empty(int(sizes[self.rank]), dtype=torch.uint8)
        dist.recv(data, 0)
        return bytes(data.numpy())

    def gather(self, part: bytes) -> list[bytes]:
        """What every rank says, in their order, on all of them: it should be short."""
        return [self.broadcast(part, of=rank) for rank in range(self.count)]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """All ranks come to the end of this, or all raise the error of the first that does not.

        None may wait in it for another, which may have failed by then.
        """
        if self.count == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # noqa: BLE001 - whatever it is, the others have to learn of it
            error = caught
        self._agree(error)

    def _agree(self, error: Exception | None) -> None:
        # The lowest rank that failed says the largest number; and whoever has not says that there is one who has not.
        said = torch.tensor([0 if error is None else self.count - self.rank, error is None])
        dist.all_reduce(said, dist.ReduceOp.MAX)
        last, some_are_well = said.tolist()
        if not last:
            return
        guilty = self.count - last
        own = b"" if error is None else pack(_failure(error))
        told = raised(unpack(self.broadcast(own, of=guilty), Failure), _ERRORS, PeerError)
        self._agreed = told.about(f"rank {guilty}") if some_are_well else told
        raise self._agreed from error

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Around what all of them do upon an order: an error that was not agreed upon parts them.

        Where another rank was lost, that one knows better why: this one waits to be ended before it speaks.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1 or error is self._agreed:
                raise
            self.out_of_step = True
            if not _lost_another(error):
                raise
            _log.exception("rank %d has lost another", self.rank)
            time.sleep(self._grace)
            raise TrainingError(
                "a process of the trainer was lost, or did not answer in time",
                remedy="The trainer's log says which",
                private=str(error),
            ) from error


def _lost_another(error: BaseException) -> bool:
    """Whether it is how torch says that another rank cannot be heard."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _failure(error: Exception) -> Failure:
    return failure(error if isinstance(error, FilmrollError) else PeerError(f"{type(error).__name__}: {error}"))


def _tensor(said: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(said), dtype=torch.uint8)
