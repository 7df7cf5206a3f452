"""Copy a weight to the CPU, for a thread that reads it while training goes on."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from esdmon.weights import stacks
from esdmon.weights.device.precision import read_weight
from esdmon.weights.matrix import Matrix
from esdmon.weights.validation import check_readable


def snapshot(matrix: Matrix) -> Matrix:
    """Return a handle on a copy of the weight in CPU memory, which later optimizer steps do not change.

    From CUDA the copy is queued on the current stream, behind the kernels that computed the weight, so no later step
    can change it half way, and the caller does not wait; the first read of the copy waits until it has arrived.

    Raises:
        UnreadableError: for a weight that holds no numbers; see `check_readable`.
    """
    with torch.no_grad():
        weight = read_weight(matrix)
        check_readable(weight)
        stack = matrix.to_stack(weight)
        read = copy_to_cpu(stack)
    return replace(matrix, read=read, to_stack=stacks.identity, made_of=None, outline=None)


def copy_to_cpu(stack: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to CPU memory, and return the function that waits for the copy and returns it."""
    if stack.device.type == "cuda":
        return _copy_from_cuda(stack)
    copy = stack.clone() if stack.device.type == "cpu" else stack.cpu()
    return lambda: copy


def _copy_from_cuda(stack: Tensor) -> Callable[[], Tensor]:
    copy = torch.empty(stack.shape, dtype=stack.dtype, device="cpu", pin_memory=True)
    copy.copy_(stack, non_blocking=True)
    arrived = torch.Event(stack.device)
    arrived.record(torch.cuda.current_stream(stack.device))

    def read() -> Tensor:
        arrived.synchronize()
        return copy

    return read
