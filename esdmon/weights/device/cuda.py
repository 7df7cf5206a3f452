"""Get information about CUDA without starting its driver."""

import torch


def uses_cuda() -> bool:
    """Return whether this process uses CUDA.

    Not `torch.cuda.is_available()`: that starts the driver, after which processes that are forked off cannot use CUDA.
    """
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured: its kernels do not run now, and its replays call no Python."""
    return uses_cuda() and torch.cuda.is_current_stream_capturing()
