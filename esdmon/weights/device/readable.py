"""What can be read at all."""

from torch import Tensor

from esdmon.weights.matrix import UnreadableError

MIN_EIGENVALUES = 10
"""Readings start here: fewer eigenvalues say nothing about a distribution."""


def check_kind(weight: Tensor) -> None:
    """Refuse what holds no whole matrix of numbers; shapes and kinds alone are looked at.

    Raises:
        UnreadableError: for packed weights, shards and empty ones.
    """
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise UnreadableError("skipped", f"{weight.dtype} weights are packed numbers, not a matrix")
    if hasattr(weight, "placements"):
        raise UnreadableError("skipped", "sharded over ranks: not read yet")
    if weight.numel() == 0:
        raise UnreadableError("skipped", "an empty weight")


def check_readable(weight: Tensor) -> None:
    """`check_kind`, and that there are numbers yet.

    Raises:
        UnreadableError: likewise, and for the meta device.
    """
    check_kind(weight)
    if weight.device.type == "meta":
        raise UnreadableError("skipped", "on the meta device: there are no numbers yet")
