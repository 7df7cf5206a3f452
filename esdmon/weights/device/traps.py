"""Find the elements that cause a correlation trap; see `esdmon.spectrum.traps`."""

import torch
from torch import Tensor

from esdmon.spectrum.elements import Elements, TrapElements
from esdmon.spectrum.traps import parts_of_trap
from esdmon.weights.device.blocks import cache_blocks, widened


def trap_elements(stack: Tensor, elements: Elements, *, n: int, m: int, scale: float) -> TrapElements | None:
    """Return the elements that cause a trap, from one more pass over the weight; None without a trap.

    Args:
        stack: (slices, rows, columns), dead ones included, in units of `scale`.
        elements: statistics of them, in units of the weight.
        n: longer side of a slice without dead rows and columns.
        m: its shorter side.
        scale: number that the weight was divided by.
    """
    by_mean, by_element = parts_of_trap(elements, n, m)
    if not max(by_mean, by_element) > 1:
        return None
    mean, limit = elements.mean / scale, (elements.variance**0.5 / scale) * (n * m) ** 0.25
    count, energy, largest, place, done = 0, 0.0, -1.0, (0, 0, 0), 0
    for part in cache_blocks(stack):
        away = (widened(part) - mean).abs_()
        beyond = away[away > limit].double()
        count, energy = count + beyond.numel(), energy + float(beyond.square().sum())
        top = int(away.argmax())
        if float(away.reshape(-1)[top]) > largest:
            largest = float(away.reshape(-1)[top])
            index, row, column = (int(each) for each in torch.unravel_index(torch.tensor(top), away.shape))
            place = (index, row + done, column)
        done += part.shape[-2]
    total = stack.numel() * (elements.variance + elements.mean**2)
    share = (energy * scale**2 + stack.numel() * elements.mean**2) / total
    return TrapElements(count, place[1], place[2], float(stack[place]) * scale, share)
