"""Extract experts that share one 3-D parameter, (experts, rows, columns), as in transformers 5.

The spectra of the experts are pooled, like those of a convolution's kernel positions; a single expert is read on
request. If gate and up-projection share a parameter, their sides and order follow from attributes of the module
(`has_gate`, `is_transposed`, `is_concatenated`) or from the shape of the down-projection. Otherwise each expert's
matrix is read as a whole, which is right in either orientation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from esdmon.weights import stacks
from esdmon.weights.matrix import Matrix
from esdmon.weights.tensor_parallel import is_grouped_mlp

_COUNTS = ("num_experts", "n_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Attributes in which modules keep the number of their experts."""
_ON_REQUEST = "experts are read pooled; one by one on request: '*/expert.3' in layers="


def extract_experts(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """Return the matrices of a module that has a number of experts and 3-D parameters with as many slices."""
    count = _number_of_experts(module)
    if count is None:
        return None
    if is_grouped_mlp(module):
        return _of_grouped_mlp(name, module, count)
    found: list[Matrix] = []
    for attribute, weight in module.named_parameters(recurse=False):
        if weight.ndim == 3 and weight.shape[0] == count:
            found += _pooled(name, module, attribute)
            found += _single_experts(name, module, attribute, count)
    return found or None


def _of_grouped_mlp(name: str, module: Any, count: int) -> list[Matrix]:
    first, second = partial(getattr, module, "weight1"), partial(getattr, module, "weight2")
    inputs = partial(stacks.experts_in_memory, experts=count, rows=module.config.hidden_size)
    outputs = partial(stacks.experts_in_memory, experts=count, rows=second().shape[0] // count)
    found = [Matrix(f"{name}.weight1", first, inputs)]
    if module.config.gated_linear_unit:
        found = [
            Matrix(f"{name}.weight1/{label}", first, partial(stacks.half_of_experts, of=inputs, half=half, dim=2))
            for half, label in enumerate(("gate", "up"))
        ]
    return [*found, Matrix(f"{name}.weight2", second, outputs)]


def _number_of_experts(module: nn.Module) -> int | None:
    """Return the number of experts that a module declares; None if it declares none."""
    counts = (vars(module).get(attribute) for attribute in _COUNTS)
    return next((count for count in counts if isinstance(count, int)), None)


def _pooled(name: str, module: nn.Module, attribute: str) -> list[Matrix]:
    """Return all experts of one parameter as one matrix, or as gate and up-projection where their layout is known."""
    read = partial(getattr, module, attribute)
    whole = f"{name}.{attribute}"
    declared = vars(module)
    if attribute != "gate_up_proj":
        return [Matrix(whole, read, stacks.identity)]
    if "is_transposed" in declared:
        dim = (2 if declared["is_transposed"] else 1) if declared.get("has_gate") else None
    else:
        dim = side_of_halves(read().shape, getattr(getattr(module, "down_proj", None), "shape", ()))
    if dim is None:
        return [Matrix(whole, read, stacks.identity)]
    split = partial(stacks.half_of_experts, dim=dim, interleaved=not declared.get("is_concatenated", True))
    return [Matrix(f"{whole}/gate", read, partial(split, half=0)), Matrix(f"{whole}/up", read, partial(split, half=1))]


def side_of_halves(gate_up: Sequence[int], down: Sequence[int]) -> int | None:
    """Return the dimension along which gate and up-projection lie beside each other, by their shape and that of down.

    None if the shapes do not fit each other.
    """
    if len(gate_up) != 3 or len(down) != 3:
        return None
    _, first, second = gate_up
    if (first, second) == (2 * down[2], down[1]):
        return 1
    return 2 if (first, second) == (down[2], 2 * down[1]) else None


def _single_experts(name: str, module: nn.Module, attribute: str, count: int) -> list[Matrix]:
    read = partial(getattr, module, attribute)
    return [
        Matrix(
            f"{name}.{attribute}/expert.{expert}",
            read,
            partial(stacks.one_expert, expert=expert),
            on_request=_ON_REQUEST,
            detail=True,
        )
        for expert in range(count)
    ]
