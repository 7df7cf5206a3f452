"""Check that a weight can be read, before time is spent on it."""

import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.weights.non_weights import NESTED
from esdmon.weights.shard import SHARDED

MIN_EIGENVALUES = 10
"""The smallest number of eigenvalues that is read: fewer do not show a distribution. Our choice."""
_REMEDY = "a plugin's esdmon_materialize can convert it"


def min_eigenvalues(view: str) -> int:
    """Return the smallest number of eigenvalues that is read; 1 for an adapter, which has norms at any rank."""
    return 1 if view == "lora-delta" else MIN_EIGENVALUES


def check_kind(weight: Tensor) -> None:
    """Raise for a weight that holds no whole matrix of real numbers, by its dtype, type and shape alone.

    Raises:
        UnreadableError: for nested, sparse, packed, integer and complex weights, shards, and empty weights.
    """
    if weight.is_nested:
        raise UnreadableError("skipped", NESTED)
    if weight.layout != torch.strided:
        kind = str(weight.layout).removeprefix("torch.")
        raise UnreadableError("skipped", f"a {kind} tensor: convert it to an ordinary one, with to_dense()")
    if weight.is_complex():
        raise UnreadableError("skipped", f"its numbers are complex ({weight.dtype}); {_REMEDY}")
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise UnreadableError("skipped", f"packed as {weight.dtype}, in a layout that is not known; {_REMEDY}")
    if hasattr(weight, "placements"):
        raise UnreadableError("skipped", SHARDED)
    if weight.numel() == 0:
        raise UnreadableError("skipped", "an empty weight")


def why_unreadable(weight: Tensor) -> str:
    """Return why `check_kind` rejects a weight; empty for one that it accepts."""
    try:
        check_kind(weight)
    except UnreadableError as error:
        return error.reason
    return ""


def check_readable(weight: Tensor) -> None:
    """Raise for a weight that `check_kind` rejects, or that is on the meta device.

    Raises:
        UnreadableError: with the reason.
    """
    check_kind(weight)
    if weight.device.type == "meta":
        raise UnreadableError("skipped", "on the meta device, which holds no numbers: load the weights first")
