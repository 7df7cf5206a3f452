"""Experts that share one 3-D parameter, (experts, rows, columns), as in transformers 5.

The spectra of the experts are pooled, as those of a convolution's kernel positions are; a single one is read on
request. Which side holds the gate beside the up-projection, and in which order, the module says itself
(`has_gate`, `is_transposed`, `is_concatenated`); where it does not, each expert's matrix is read whole, which is right
whichever way round it lies.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import nn

from esdmon.weights import stacks
from esdmon.weights.matrix import Matrix

EXPERT_COUNTS = ("num_experts", "n_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What modules call the number of their experts."""
_ONE = "experts are read pooled; one by one on request: '*/expert.3' in layers="


def extract_experts(name: str, module: nn.Module) -> Sequence[Matrix] | None:
    """The experts of a module that says how many it holds, and has a 3-D parameter with as many slices."""
    count = number_of_experts(module)
    own = dict(module.named_parameters(recurse=False))
    blocks = [attribute for attribute, weight in own.items() if weight.ndim == 3 and weight.shape[0] == count]
    return [matrix for attribute in blocks for matrix in _of_block(name, module, attribute)] if blocks else None


def number_of_experts(module: nn.Module) -> int | None:
    """How many experts a module says that it holds; None where it says nothing."""
    counts = (vars(module).get(attribute) for attribute in EXPERT_COUNTS)
    return next((count for count in counts if isinstance(count, int)), None)


def _of_block(name: str, module: nn.Module, attribute: str) -> Iterator[Matrix]:
    read = partial(getattr, module, attribute)
    whole = f"{name}.{attribute}"
    says = vars(module)
    if attribute == "gate_up_proj" and says.get("has_gate") and "is_transposed" in says:
        dim, interleaved = (2 if says["is_transposed"] else 1), not says.get("is_concatenated", True)
        for half, label in enumerate(("gate", "up")):
            to_stack = partial(stacks.half_of_experts, half=half, dim=dim, interleaved=interleaved)
            yield Matrix(f"{whole}/{label}", read, to_stack)
    else:
        yield Matrix(whole, read, stacks.as_it_is)
    for expert in range(read().shape[0]):
        to_stack = partial(stacks.one_expert, expert=expert)
        yield Matrix(f"{whole}/expert.{expert}", read, to_stack, on_request=_ONE, detail=True)
