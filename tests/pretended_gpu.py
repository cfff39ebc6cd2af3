"""A pretended GPU: tensors that say they are on `cuda:0`, and lie in the host's memory.

It is no GPU. Every kernel is the CPU's own, so results are the CPU's, and nothing is learnt of a GPU's speed,
memory, kernels or order of events. What it does learn is where each tensor stands: an operation that mixes host
and device raises as CUDA does, so does `.numpy()` of what is on the device, and whatever makes a host wait for its
device is noted. As with torch's own fake tensors, there is a `meta` tensor before torch's C++, under the dispatch
keys of CUDA: so autograd and autocast go CUDA's way.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.optim import optimizer
from torch.utils import _device as default_device
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("cuda", 0)
HOST, META = torch.device("cpu"), torch.device("meta")
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}
"""Take indices from the host; where an index is a mask, the host has to know how many there are."""
WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
}
"""Give the host a number, or something of a size that the device alone knows."""
NUMBERS_TOO = {
    aten.index_fill.int_Tensor,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.where.self,
}
"""Beside what goes element by element: take a number from the host."""
MULTIPLIED = [
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "conv3d"),
    "scaled_dot_product_attention",
]
"""What CUDA's autocast has done in bfloat16."""
SUMMED = ["softmax.int", "log_softmax.int", "layer_norm", "exp", "log", "pow.Tensor_Scalar", "rsqrt", "sum", "cumsum"]
"""What it has done in float32. Both lists are of what models do; torch has more."""


@dataclass
class Watched:
    """What has happened between host and device."""

    waits: list[str] = field(default_factory=list)
    """Each time the host waited for the device: for what, and where."""
    sent: list[torch.Tensor] = field(default_factory=list)
    """What was copied to the device, as it was on the host."""
    pinned: list[torch.Tensor] = field(default_factory=list)
    random: torch.Tensor = field(default_factory=lambda: torch.Generator().manual_seed(0).get_state())
    """The state of the device's own random numbers."""

    def wait(self, what: object) -> None:
        frame = sys._getframe()
        while frame.f_back is not None and not re.search(
            "/(src|site-packages)/filmroll/|/tests/.*/test_", frame.f_code.co_filename
        ):
            frame = frame.f_back
        self.waits.append(f"{what} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}")


class OnDevice(torch.Tensor):
    """Says that it is on the device. `held` are its numbers."""

    held: torch.Tensor
    watched: Watched

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, watched: Watched) -> OnDevice:
        # Outside of it: a view of what was made outside of it would be asked for its version.
        with torch.inference_mode(False):
            outline = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device=META)
            made: OnDevice = torch.Tensor._make_subclass(cls, outline, False, device_for_backend_keys=DEVICE)
        made.held, made.watched = held, watched
        return made

    @property
    def device(self) -> torch.device:
        return DEVICE

    is_cuda = property(lambda _: True)
    is_meta = property(lambda _: False)

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        watched = next(one.watched for one in _leaves((args, kwargs)) if isinstance(one, OnDevice))
        return _Operation(watched, func, args, dict(kwargs or {})).result()


class _Making(TorchDispatchMode):
    """Has tensors made on the device that are asked for there; in the thread that enters it."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._watched = watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _Operation(self._watched, func, args, dict(kwargs or {})).result()


class _Operation:
    """One operation, that stands on the host, on the device, or goes from one to the other."""

    def __init__(self, watched: Watched, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._watched, self._func, self._args, self._kwargs = watched, func, args, kwargs
        tensors = [one for one in _leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        self._device = [one for one in tensors if isinstance(one, OnDevice)]
        self._host = [one for one in tensors if not isinstance(one, OnDevice)]

    def result(self) -> Any:
        if self._is_of_meta():
            return self._func(*self._args, **self._kwargs)
        if self._func in COPIES:
            return self._copied()
        if _decomposes(self._func):
            # In inference mode torch leaves it to whoever dispatches.
            with _Making(self._watched):
                return self._func.decompose(*self._args, **self._kwargs)
        asked = self._kwargs.get("device")
        if asked.type == "cpu" if asked is not None else not self._device:
            return self._computed(on_device=False)
        self._check_together()
        if self._func in WAITING or self._has_mask():
            self._watched.wait(self._func)
        return self._computed(on_device=True)

    def _is_of_meta(self) -> bool:
        """Models are outlined on `meta` while they are loaded; what torch's C++ makes there is meant for us."""
        asked = self._kwargs.get("device")
        outlining = default_device.CURRENT_DEVICE is not None and default_device.CURRENT_DEVICE.type == "meta"
        return any(one.is_meta for one in self._host) or (outlining and not self._device and asked is not None)

    def _copied(self) -> Any:
        """Between host and device, or between two of either."""
        if self._func is aten.copy_.default:
            to, source = self._args[0], self._args[1]
            to_device = isinstance(to, OnDevice)
        else:
            source = self._args[0]
            asked = self._kwargs.get("device")
            to_device = isinstance(source, OnDevice) if asked is None else asked.type != "cpu"
        from_device = isinstance(source, OnDevice)
        quick = self._kwargs.get("non_blocking", self._args[2] if len(self._args) > 2 else False)
        if to_device and not from_device:
            self._watched.sent.append(source.detach().clone())
            if not (quick and any(source is one for one in self._watched.pinned)):
                self._watched.wait(f"{self._func} to the device")
        elif from_device and not to_device:
            self._watched.wait(f"{self._func} to the host")
        return self._computed(on_device=to_device)

    def _check_together(self) -> None:
        if (generator := self._kwargs.get("generator")) is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")
        numbers = torch.Tag.pointwise in self._func.tags or "foreach" in str(self._func) or self._func in NUMBERS_TOO
        for one in self._host:
            index = self._func in INDEXED and any(one is index for index in self._args[1])
            if not index and not (one.ndim == 0 and (numbers or self._func in INDEXED)):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, "
                    f"{DEVICE} and cpu! ({self._func})"
                )
            if index:
                self._watched.wait(f"{self._func} by indices of the host")

    def _has_mask(self) -> bool:
        masks = (torch.bool, torch.uint8)
        return self._func in INDEXED and any(one is not None and one.dtype in masks for one in self._args[1])

    def _computed(self, *, on_device: bool) -> Any:
        if "device" in self._kwargs and (self._kwargs["device"] is not None):
            self._kwargs["device"] = HOST
        if on_device:
            self._kwargs.pop("pin_memory", None)
        args, kwargs = _held((self._args, self._kwargs))
        if on_device and self._func is aten.histc.default:
            # CUDA counts whole numbers; the CPU has no kernel for it.
            args = (args[0].float(), *args[1:])
        with self._random() if on_device else ExitStack():
            made = self._func(*args, **kwargs)
        if not on_device:
            return made
        # What is changed in place stays the tensor that it was.
        known = {id(one.held): one for one in self._device}

        def outlined(one: torch.Tensor) -> OnDevice:
            return known[id(one)] if id(one) in known else OnDevice(one, self._watched)

        return tree_map_only(torch.Tensor, outlined, made)

    @contextmanager
    def _random(self) -> Iterator[None]:
        """The device draws random numbers of its own."""
        if torch.Tag.nondeterministic_seeded not in self._func.tags:
            yield
            return
        before = torch.get_rng_state()
        torch.set_rng_state(self._watched.random)
        try:
            yield
        finally:
            self._watched.random = torch.get_rng_state()
            torch.set_rng_state(before)


@cache
def _decomposes(func: Any) -> bool:
    decomposes: bool = func._can_decompose()
    return decomposes


# As of torch's pytrees, at a part of their cost: this is done for every operation.
def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _held(value: Any) -> Any:
    """The same with the numbers of what is on the device."""
    if isinstance(value, OnDevice):
        return value.held
    if isinstance(value, list | tuple):
        return type(value)(map(_held, value))
    return {name: _held(one) for name, one in value.items()} if isinstance(value, dict) else value


@contextmanager
def pretended_gpu() -> Iterator[Watched]:
    """In this thread `cuda` is there, and in others for tensors that are on it already."""
    watched = Watched()
    with ExitStack() as stack:
        for place, name, stand_in in _stand_ins(watched):
            stack.enter_context(mock.patch.object(place, name, stand_in))
        stack.enter_context(_autocast())
        stack.enter_context(_Making(watched))
        yield watched


def join_in(watched: Watched) -> None:
    """The same for the rest of another thread, called in it."""
    _Making(watched).__enter__()


def _stand_ins(watched: Watched) -> Iterator[tuple[Any, str, Any]]:
    def pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
        pinned = tensor.clone()
        watched.pinned.append(pinned)
        return pinned

    make, send = torch.tensor, torch.Tensor.to

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
        made = make(data, **kwargs)
        return made if device is None else made.to(device)

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Without a number, torch would ask a driver for the present one.
        return send(tensor, *map(_numbered, args), **{name: _numbered(one) for name, one in kwargs.items()})

    def set_random(state: torch.Tensor, device: Any = None) -> None:
        watched.random = state.clone()

    def seed(number: int) -> None:
        watched.random = torch.Generator().manual_seed(number).get_state()

    stream = mock.Mock(synchronize=lambda: watched.wait("synchronize"))
    cuda = {
        "_initialized": True,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: stream,
        "device": _Chosen,
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: (9, 0),
        "get_rng_state": lambda device=None: watched.random.clone(),
        "is_available": lambda: True,
        "is_bf16_supported": lambda **_: True,
        "is_initialized": lambda: True,
        "manual_seed": seed,
        "manual_seed_all": seed,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_device": lambda _: None,
        "set_rng_state": set_random,
        "stream": lambda _: ExitStack(),
        "synchronize": lambda device=None: watched.wait("synchronize"),
    }
    for name, stand_in in cuda.items():
        yield torch.cuda, name, stand_in
    yield torch, "tensor", tensor
    yield torch.Tensor, "to", to
    yield torch.Tensor, "pin_memory", pin
    yield torch.Tensor, "is_pinned", lambda one, device=None: any(one is other for other in watched.pinned)
    # As torch does for its own tensors: many at once, and tied ones stay one.
    yield _foreach_utils, "_foreach_supported_types", [*_foreach_utils._foreach_supported_types, OnDevice]
    yield optimizer, "_foreach_supported_types", [*optimizer._foreach_supported_types, OnDevice]
    yield torch.__future__, "_swap_module_params_on_conversion", True


class _Chosen(ExitStack):
    """`with torch.cuda.device(0)`: there is no other."""

    def __init__(self, device: Any) -> None:
        super().__init__()


def _numbered(asked: Any) -> Any:
    return DEVICE if isinstance(asked, str | torch.device) and str(asked) == "cuda" else asked


@contextmanager
def _autocast() -> Iterator[None]:
    """What torch's C++ does for CUDA's tensors alone, by the same dispatch key."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def cast(name: str, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(aten, packet), overload or "default")

        def kernel(*args: Any, **kwargs: Any) -> Any:
            def taken(one: OnDevice) -> torch.Tensor:
                return one.to(dtype()) if one.is_floating_point() and one.dtype != torch.float64 else one

            with torch._C._ExcludeDispatchKeyGuard(key):
                return operation(*tree_map_only(OnDevice, taken, args), **tree_map_only(OnDevice, taken, kwargs))

        return kernel

    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*may also be overridden")
        for names, dtype in ((MULTIPLIED, lambda: torch.get_autocast_dtype("cuda")), (SUMMED, lambda: torch.float32)):
            for name in names:
                library.impl(name, cast(name, dtype), "AutocastCUDA", allow_override=True)
        yield
