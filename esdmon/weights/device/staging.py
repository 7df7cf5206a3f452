"""Copy a weight to the CPU, for a thread that reads the copy while training continues."""

from dataclasses import replace

import torch

from esdmon.weights import stacks
from esdmon.weights.device.precision import read_weight
from esdmon.weights.device.transfers import Transfers
from esdmon.weights.matrix import Matrix


def snapshot(matrix: Matrix, transfers: Transfers, *, with_reference: bool = False) -> Matrix:
    """Return a handle on a copy of the weight in CPU memory, which later optimizer steps do not change.

    From an accelerator the copy is queued, and the caller does not wait; the first read of the copy waits until it has
    arrived.

    Args:
        matrix: the handle on the weight.
        transfers: make the copies.
        with_reference: also copy the original weight, see `Matrix.reference`.

    Raises:
        UnreadableError: for a weight that holds no numbers; see `check_readable`.
    """
    with torch.no_grad():
        read = transfers.copy(matrix.to_stack(read_weight(matrix)))
        reference = matrix.reference
        if with_reference and reference is not None:
            reference = transfers.copy(matrix.to_stack(reference().detach()))
    return replace(matrix, read=read, to_stack=stacks.identity, made_of=None, outline=None, reference=reference)
