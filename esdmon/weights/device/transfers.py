"""Copy tensors from an accelerator to the CPU while training continues: no step waits, and only one thread calls CUDA.

While a graph is captured, a CUDA call in any other thread, even the query of an event, ends the capture with an error
(seen on an H100 with torch 2.11). So only the training's thread checks in `Transfers.advance` whether copies have
arrived, and a thread that reads a copy waits for the result of this check.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, final

import torch
from torch import Tensor

from esdmon.weights.device.cuda import has_room, is_capturing

Later: TypeAlias = Callable[[], Tensor]
"""Returns a tensor on the CPU; waits for it if it has not arrived."""


@dataclass(frozen=True, slots=True)
class Sending:
    """A copy that was queued."""

    host: Tensor
    """The copy, on the CPU; valid once it has arrived."""
    has_arrived: Callable[[], bool]
    """Asks the device whether it has arrived, without waiting."""
    wait: Callable[[], None]
    """Waits until it has arrived."""
    release: Callable[[], None]
    """Frees `host` for the next copy; may be called in any thread."""
    source: Tensor
    """The source on the device; held until the copy has arrived."""


class Accelerator(Protocol):
    """A device whose copies to the CPU are queued. Its methods are called by the thread that trains."""

    def is_capturing(self) -> bool:
        """Return whether a graph is being captured, so that the device must not be called."""

    def has_room(self, device: torch.device, size: int) -> bool:
        """Return whether a device has memory for so many bytes."""

    def clone(self, tensor: Tensor) -> Tensor:
        """Queue a copy on the device, in the stream of the training."""

    def send(self, tensor: Tensor, *, aside: bool) -> Sending:
        """Queue a copy to the host behind all that the training has queued.

        Args:
            tensor: on the device.
            aside: copy in a separate stream, so that later work of the training does not wait for the copy; this work
                must not change the tensor.
        """


@final
class _Copy:
    """A tensor that is being copied; only the training's thread calls the device, and frees its memory."""

    def __init__(self, owner: "Transfers", sending: Sending) -> None:
        self._owner = owner
        self._sending: Sending | None = sending
        self._host = sending.host
        self._release: Callable[[], None] | None = sending.release
        self._arrived = threading.Event()
        self._lock = threading.Lock()

    def poll(self, *, wait: bool = False) -> bool:
        """Return whether it has arrived, or wait until it has: in the thread that trains."""
        if self._sending is not None:
            if wait:
                self._sending.wait()
            elif not self._sending.has_arrived():
                return False
            self._sending = None
            self._arrived.set()
        return True

    def read(self) -> Tensor:
        """Return the tensor, in pageable memory, so that the pinned memory is free for the next copy."""
        if self._owner.is_own_thread:
            self.poll(wait=True)
        self._arrived.wait()
        with self._lock:
            if self._release is not None:
                self._host = self._host.clone()
                self._release()
                self._release = None
            return self._host


@dataclass(frozen=True, slots=True)
class Fetched:
    """A small tensor that was computed on a device, and is fetched to the CPU."""

    read: Later
    is_there: Callable[[], bool] = field(default=lambda: True)
    """Returns whether it has arrived, so that `read` does not wait; called by the thread that trains."""


@final
class Transfers:
    """The unfinished copies of one monitor.

    A weight is first copied on its device, in the stream of the training, and from there by a stream of its own: a copy
    of 67 MB to the host holds up the training's stream for 1.2 ms, and one on the device for 0.1 ms (H100). Where the
    device is short of memory, the weight is copied to the host in the training's stream.

    Args:
        accelerators: by the type of their device; a tensor of any other is copied at once.
    """

    def __init__(self, accelerators: Mapping[str, Accelerator] | None = None) -> None:
        self._accelerators = {"cuda": Cuda()} if accelerators is None else accelerators
        self.waits = False
        """True to wait for each copy at once, so that no copy is unfinished between steps."""
        self._under_way: list[_Copy] = []
        self._thread = threading.get_ident()

    @property
    def is_idle(self) -> bool:
        """Return whether no copy is under way."""
        return not self._under_way

    @property
    def is_own_thread(self) -> bool:
        """Return whether this is the thread that trains."""
        return threading.get_ident() == self._thread

    def is_capturing(self) -> bool:
        """Return whether a graph is being captured, so that no device must be called."""
        return any(each.is_capturing() for each in self._accelerators.values())

    def is_accelerator(self, device: torch.device) -> bool:
        """Return whether copies from a device are queued."""
        return device.type in self._accelerators

    def has_room(self, device: torch.device, size: int) -> bool:
        """Return whether a device has memory for so many bytes and more; True for one that is not an accelerator."""
        accelerator = self._accelerators.get(device.type)
        return accelerator is None or accelerator.has_room(device, size)

    def copy(self, weight: Tensor) -> Later:
        """Begin to copy a tensor that later steps change, and return the function that returns the copy."""
        if weight.device.type in self._accelerators:
            return self._send(weight, changes=True).read
        copy = weight.clone() if weight.device.type == "cpu" else weight.cpu()
        return lambda: copy

    def fetch(self, result: Tensor) -> Fetched:
        """Begin to fetch a small tensor that nothing changes."""
        if result.device.type in self._accelerators:
            copy = self._send(result, changes=False)
            return Fetched(copy.read, copy.poll)
        fetched = result.cpu()
        return Fetched(lambda: fetched)

    def advance(self, *, wait: bool = False) -> None:
        """Ask which copies have arrived: in the thread that trains, at each step; with `wait` wait for all of them."""
        self._thread = threading.get_ident()
        if self._under_way and not self.is_capturing():
            self._under_way = [copy for copy in self._under_way if not copy.poll(wait=wait)]

    def _send(self, tensor: Tensor, *, changes: bool) -> _Copy:
        self._thread = threading.get_ident()
        accelerator = self._accelerators[tensor.device.type]
        aside = changes and self.has_room(tensor.device, tensor.nbytes)
        copy = _Copy(self, accelerator.send(accelerator.clone(tensor) if aside else tensor, aside=aside))
        if self.waits:
            copy.read()
        else:
            self._under_way.append(copy)
        return copy


@final
class Cuda:
    """Copies from CUDA devices, through pinned memory."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def is_capturing(self) -> bool:
        """Return whether the current stream of this thread is being captured."""
        return is_capturing()

    def has_room(self, device: torch.device, size: int) -> bool:
        """Return whether a device has memory for so many bytes, four times over."""
        return has_room(device, size)

    def clone(self, tensor: Tensor) -> Tensor:
        """Queue a copy on the device."""
        return tensor.clone(memory_format=torch.contiguous_format)

    def send(self, tensor: Tensor, *, aside: bool) -> Sending:
        """Queue a copy to pinned memory."""
        block = _PINNED.take(tensor.nbytes)
        host = block[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        with torch.cuda.device(tensor.device):
            stream = torch.cuda.current_stream()
            if aside:
                side = self._stream(tensor.device)
                side.wait_stream(stream)
                stream = side
            with torch.cuda.stream(stream):
                host.copy_(tensor, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                event.record(stream)
        return Sending(host, event.query, event.synchronize, lambda: _PINNED.give_back(block), tensor)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as Event
        return self._streams[device]


_MAX_FREE_BYTES = 256 << 20  # of pinned memory that is kept while it is not in use; our choice


@final
class _Pinned:
    """Blocks of pinned memory, which are used again and never freed by a thread that reads.

    Pinning memory takes 0.7 ms per MB (H100), and freeing it calls CUDA.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """Return a block of at least so many bytes: of a power of two, as torch rounds them in any case."""
        rounded = 1 << max(12, (size - 1).bit_length())
        for index, block in enumerate(self._free):
            if block.numel() == rounded:
                return self._free.pop(index)
        if sum(block.numel() for block in tuple(self._free)) + rounded > _MAX_FREE_BYTES:
            self._free.clear()
        return torch.empty(rounded, dtype=torch.uint8, pin_memory=True)

    def give_back(self, block: Tensor) -> None:
        """Keep a block for the next copy."""
        self._free.append(block)


_PINNED = _Pinned()
"""Pinned memory belongs to the process, and must outlive a monitor whose thread still reads."""
