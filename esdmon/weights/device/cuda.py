"""Get information about CUDA without starting its driver."""

import torch

_SHARE = 4  # of the free memory of a device at most one part in four is taken; our choice


def uses_cuda() -> bool:
    """Return whether this process uses CUDA.

    Not `torch.cuda.is_available()`: that starts the driver, after which processes that are forked off cannot use CUDA.
    """
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured: its kernels do not run now, and its replays call no Python."""
    return uses_cuda() and torch.cuda.is_current_stream_capturing()


def has_room(device: torch.device, size: int) -> bool:
    """Return whether a CUDA device has so many bytes free, four times over.

    A request that fails makes torch give back all memory that it keeps for the training, and the training may then fail
    to get it again. Memory that torch keeps and does not use does not count, since it may lie in pieces.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return _SHARE * size <= free
