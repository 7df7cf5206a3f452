"""Private parts of torch, one function for each; tests/test_torch_private.py guards them.

A test of a function fails where a new version of torch has changed what it reads, and says what stops working then.
"""

from contextlib import suppress
from types import CodeType
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer


def step_wrapper() -> CodeType | None:
    """Return the code of the wrapper that torch puts around the `step` of every optimizer class; None without one.

    It is not read off a class, since torch.compile wraps the step of some classes (LBFGS, SparseAdam) once more.
    """
    with suppress(Exception):
        return Optimizer.profile_hook_step(lambda _: None).__code__
    return None


def has_step_hooks(optimizer: object) -> TypeGuard[Optimizer]:
    """Return whether hooks can be registered on an optimizer: its `__init__` was that of `torch.optim.Optimizer`."""
    return isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks")


def version_of(tensor: Tensor | None) -> int:
    """Return how often torch has changed a tensor in place; 0 for a tensor that counts nothing, or None."""
    with suppress(RuntimeError, AttributeError):  # a tensor that was made in inference mode counts nothing
        return 0 if tensor is None else tensor._version  # noqa: SLF001
    return 0


def drop_empty_gradient_hooks(tensor: Tensor) -> None:
    """Remove the empty dictionary that torch leaves on a tensor after its last gradient hook was removed."""
    if getattr(tensor, "_post_accumulate_grad_hooks", None) == {}:
        tensor._post_accumulate_grad_hooks = None  # type: ignore[assignment]  # noqa: SLF001


def is_in_backward() -> bool:
    """Return whether the calling thread is inside a backward pass."""
    current = getattr(torch._C, "_current_graph_task_id", None)  # noqa: SLF001
    return current is not None and current() != -1


def job_store(prefix: str) -> Any:
    """Return the key-value store of the default process group, with `prefix/` before each key."""
    from torch.distributed import distributed_c10d as c10d  # noqa: PLC0415 -- some builds of torch have none

    return c10d.PrefixStore(prefix, c10d._get_default_store())  # noqa: SLF001
