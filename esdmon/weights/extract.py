"""Which matrices a module holds: the built-in extractor, for linear layers and 2-D convolutions."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from esdmon.weights.matrix import Matrix

Extractor = Callable[[str, nn.Module], Sequence[Matrix] | None]
"""`(canonical name, module) -> matrices`, or None for a kind of module that it does not know."""


def extract(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """The matrices of a `Linear` or `Conv2d`."""
    if isinstance(module, nn.Linear):
        return [Matrix(name, partial(getattr, module, "weight"), linear_stack)]
    if isinstance(module, nn.Conv2d):
        return [Matrix(name, partial(getattr, module, "weight"), partial(convolution_stack, groups=module.groups))]
    return None


def linear_stack(weight: Tensor) -> Tensor:
    """(outputs, inputs) as one slice."""
    return weight.unsqueeze(0)


def convolution_stack(weight: Tensor, *, groups: int = 1) -> Tensor:
    """(O, I/g, kh, kw) of g groups as g·kh·kw slices O/g × I/g, whose spectra are pooled, as Martin & Mahoney do."""
    outputs, inputs, height, width = weight.shape
    grouped = weight.reshape(groups, outputs // groups, inputs, height, width)
    return grouped.permute(0, 3, 4, 1, 2).reshape(-1, outputs // groups, inputs)
