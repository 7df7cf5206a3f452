"""Find the elements that cause a correlation trap; see `esdmon.spectrum.traps`."""

import torch
from torch import Tensor

from esdmon.spectrum.preparation import FarElements
from esdmon.weights.device.blocks import cache_blocks, widened


def far_elements(stack: Tensor, mean: float, limit: float) -> FarElements:
    """Return the elements whose distance from a mean is above a limit, from one more pass over the weight."""
    count, squares, largest, place, done = 0, 0.0, -1.0, (0, 0, 0), 0
    for part in cache_blocks(stack):
        away = (widened(part) - mean).abs_()
        beyond = away[away > limit].double()
        count, squares = count + beyond.numel(), squares + float(beyond.square().sum())
        top = int(away.argmax())
        if float(away.reshape(-1)[top]) > largest:
            largest = float(away.reshape(-1)[top])
            index, row, column = (int(each) for each in torch.unravel_index(torch.tensor(top), away.shape))
            place = (index, row + done, column)
        done += part.shape[-2]
    return FarElements(count, squares, place, float(stack[place]))
