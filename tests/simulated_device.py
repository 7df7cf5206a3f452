"""A device that is simulated: queues that are run by hand, and copies that happen when they are run."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from esdmon.weights import Sending


class SimulatedDevice:
    """Two streams of an accelerator, whose kernels are functions; tensors of the CPU stand for those of the device.

    As CUDA does, it is called by the thread that trains only, and a call while a graph is captured ends the capture:
    both are noted in `broken`.

    Args:
        runs_at_once: whether the stream of the training runs what is queued; else `run` does.
        room: bytes of the largest copy for which there is memory on the device.
    """

    def __init__(self, *, runs_at_once: bool = True, room: float = math.inf) -> None:
        self.runs_at_once = runs_at_once
        self.room = room
        self.captured = False
        self.broken: list[str] = []
        self.waits = self.clones = 0
        self._thread = threading.get_ident()
        self._queued = self._done = 0
        self._training: deque[Callable[[], object]] = deque()
        self._side: deque[tuple[int, Callable[[], object]]] = deque()
        """Each with the kernels of the training that come before it."""

    def is_capturing(self) -> bool:
        return self.captured

    def launch(self, kernel: Callable[[], object]) -> None:
        """Queue a kernel in the stream of the training."""
        self._training.append(kernel)
        self._queued += 1
        if self.runs_at_once:
            self.run()

    def run(self, count: int = 1 << 30) -> None:
        """Run so many kernels of the training."""
        for _ in range(min(count, len(self._training))):
            self._training.popleft()()
            self._done += 1

    def run_side(self, count: int = 1 << 30) -> None:
        """Run so many copies of the other stream, as far as they need not wait for the training's."""
        for _ in range(min(count, len(self._side))):
            if self._side[0][0] > self._done:
                return
            self._side.popleft()[1]()

    def has_room(self, _device: torch.device, size: int) -> bool:
        self._called("has_room")
        return size <= self.room

    def clone(self, tensor: Tensor) -> Tensor:
        self._called("clone")
        self.clones += 1
        copy = torch.full_like(tensor, torch.nan, memory_format=torch.contiguous_format)
        self.launch(lambda: copy.copy_(tensor))
        return copy

    def send(self, tensor: Tensor, *, aside: bool) -> Sending:
        self._called("send")
        host = torch.full_like(tensor, torch.nan, memory_format=torch.contiguous_format)
        arrived = threading.Event()

        def copy() -> None:
            host.copy_(tensor)
            arrived.set()

        def has_arrived() -> bool:
            self._called("query")
            return arrived.is_set()

        def wait() -> None:
            self._called("synchronize")
            self.waits += not arrived.is_set()
            self.run()
            self.run_side()
            assert arrived.is_set()

        if aside:
            self._side.append((self._queued, copy))
        else:
            self.launch(copy)
        return Sending(host, has_arrived, wait, lambda: None, tensor)

    def _called(self, what: str) -> None:
        if threading.get_ident() != self._thread:
            self.broken.append(f"{what} in another thread")
        if self.captured:
            self.broken.append(f"{what} in a capture")


def train_step(device: SimulatedDevice, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Take a step that is captured or replayed as a whole, up to the hook that follows; return its loss."""
    device.captured = True
    loss = (model(torch.randn(8, 64)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(1e-3)  # in which the thread that reads may do anything
    device.captured = False
    return float(loss.detach())
