"""Measure the scales of tensors without their strongest directions; `esdmon.spectrum.rest` does so for arrays."""

from collections.abc import Sequence

import torch
from torch import Tensor

from esdmon.spectrum import rest as arrays
from esdmon.spectrum.scales import Scales
from esdmon.weights.device.blocks import widened
from esdmon.weights.device.margins import as_array, scales_of
from esdmon.weights.device.sums import sum_up


def scales_of_rest(stack: Tensor, counts: Sequence[int]) -> Scales:
    """Return the scales of a stack without the `counts` strongest directions of each slice, turned as for arrays."""
    array = as_array(stack)
    if array is not None:
        return arrays.scales_of_rest(array[:], counts)
    stack = widened(stack)
    rest = rest_of(stack if sum_up(stack).margins.columns_first() else stack.mT, counts)
    return scales_of(rest, sum_up(rest).margins)


def rest_of(stack: Tensor, counts: Sequence[int]) -> Tensor:
    """Return a stack without the `counts` strongest directions of each slice."""
    basis = torch.from_numpy(arrays.start(tuple(stack.shape), counts)).to(stack)
    for _ in range(arrays.PASSES):
        basis = torch.linalg.qr(stack.mT @ (stack @ basis))[0]
    image = stack @ basis
    _, rotation = torch.linalg.eigh(image.mT @ image)
    mask = torch.from_numpy(arrays.kept(counts, basis.shape[2])).to(stack)
    basis = (basis @ rotation).flip(-1) * mask
    rest: Tensor = stack - (stack @ basis) @ basis.mT
    return rest
