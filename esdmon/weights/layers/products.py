"""Multiply the projections of attention, head by head: W_qᵀW_k, which determines logits, and W_oW_v, the output.

In each head of size d the logit of two inputs x and y is xᵀ W_qᵀ W_k y/√d, and y adds W_o W_v y to the output, times a
weight. Neither product changes if q is scaled up and k down by the same factor, or v and o. Both products are A·Bᵀ, A
and B of d columns, so they have d singular values that are not zero by construction: those of R_A·R_Bᵀ, the factors R
of the QR decompositions of A and B. They are computed in float64.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from esdmon.errors import UnreadableError
from esdmon.weights import stacks
from esdmon.weights.device.sample import sample_tensor
from esdmon.weights.matrix import Matrix, mark_unreadable
from esdmon.weights.torch_private import children_of
from esdmon.weights.validation import check_readable

_ON_REQUEST = "products of attention's projections are read on request: '*/qk' and '*/ov' in layers="
_NORMALISED = "q or k is normalised before they are multiplied, so the logits are not those of the product of weights"
_NORM = re.compile(r"(q|k|qk|query|key)_?(layer_?)?(norm|ln)", re.IGNORECASE)
_NO_NORMS = ("Identity", "IdentityOp")
"""Names of classes of torch and of Megatron that do not normalise."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection of attention, one of q, k, v and o."""

    weight: Matrix
    outputs_last: bool = False
    """True if the columns of its matrix are the outputs, instead of the rows."""
    head_size: int = 0
    """Outputs of one head; 0 for a projection without heads."""

    def read(self) -> Tensor:
        """Return the current weight, (outputs, inputs).

        Raises:
            UnreadableError: for one that holds no numbers.
        """
        parameter = self.weight.read()
        check_readable(parameter.detach())
        matrix = self.weight.to_stack(parameter.detach())[0]
        return matrix.mT if self.outputs_last else matrix

    def shape(self) -> tuple[int, int]:
        """Return (outputs, inputs) without reading any element; zeros where the shape does not fit the layer."""
        try:
            _, rows, columns = self.weight.stack_shape()
        except UnreadableError:  # reported for the weight itself
            return 0, 0
        return (columns, rows) if self.outputs_last else (rows, columns)


def products_of(name: str, module: nn.Module, projections: Mapping[str, Projection]) -> list[Matrix]:
    """Return `name/qk` and `name/ov`, which are read on request, if all their projections are known and fit.

    Args:
        name: name of the module.
        module: the attention module, which is searched for norms of q and k.
        projections: the projections by their letters: q, k, v and o. Consecutive heads of q may share one head of k and
            v.
    """
    q, k, v, o = (projections[letter].shape() if letter in projections else (0, 0) for letter in "qkvo")
    size = projections["q"].head_size if "q" in projections else 0
    heads, rest = divmod(q[0], size) if size > 0 else (0, 0)
    if rest or not heads:
        return []
    found = []
    if _shares_heads(k[0], size, heads):
        qk = _product(f"{name}/qk", "qk", projections["q"], projections["k"], heads=heads, size=size)
        found.append(mark_unreadable(qk, _NORMALISED) if _has_norms(module) else qk)
    values = 0 if o[1] % heads else o[1] // heads
    if values and _shares_heads(v[0], values, heads):
        found.append(_product(f"{name}/ov", "ov", projections["o"], projections["v"], heads=heads, size=values))
    return found


def _shares_heads(outputs: int, size: int, heads: int) -> bool:
    """Return whether the outputs form heads of this size, each shared by an equal number of heads of q."""
    return outputs >= size and outputs % size == 0 and heads % (outputs // size) == 0


def _has_norms(module: nn.Module) -> bool:
    norms = [child for name, child in children_of(module).items() if child is not None and _NORM.fullmatch(name)]
    return any(type(norm).__name__ not in _NO_NORMS for norm in norms)


def _product(name: str, view: str, left: Projection, right: Projection, *, heads: int, size: int) -> Matrix:
    take = _heads_by_outputs if view == "qk" else _heads_by_inputs
    rows = left.shape()[1 if view == "qk" else 0]
    columns = right.shape()[1]

    def read() -> Tensor:
        a, b = take(left.read(), heads), _heads_by_outputs(right.read(), right.shape()[0] // size)
        return torch.cat([a, b.repeat_interleave(heads // b.shape[0], dim=0)], dim=1)

    return Matrix(
        name,
        read,
        stacks.identity,
        made_of=partial(_parameters, left, right),
        outline=partial(torch.empty, heads, rows + columns, size, device="meta"),
        on_request=_ON_REQUEST,
        detail=True,
        view=view,
        probe=partial(_sample, left, right),
        core=partial(core_of, rows=rows),
    )


def _heads_by_outputs(weight: Tensor, heads: int) -> Tensor:
    """Return (heads, inputs, size) of a weight whose outputs are divided into heads."""
    return weight.reshape(heads, -1, weight.shape[1]).mT


def _heads_by_inputs(weight: Tensor, heads: int) -> Tensor:
    """Return (heads, outputs, size) of a weight whose inputs are divided into heads."""
    return weight.reshape(weight.shape[0], heads, -1).transpose(0, 1)


def core_of(factors: Tensor, *, rows: int) -> Tensor:
    """Return matrices with the singular values of A·Bᵀ that are not zero by construction, in float64.

    Args:
        factors: (heads, rows + columns, size), A above B.
        rows: number of rows of A.
    """
    wide = factors.double()
    left, right = (torch.linalg.qr(factor, mode="r").R for factor in (wide[:, :rows], wide[:, rows:]))
    core: Tensor = left @ right.mT
    return core


def _parameters(left: Projection, right: Projection) -> tuple[Tensor, ...]:
    parameters = left.weight.read(), right.weight.read()
    return parameters[:1] if parameters[0] is parameters[1] else parameters


def _sample(left: Projection, right: Projection, size: int) -> Tensor:
    """Return elements of both projections: the product changes when one of them does."""
    a, b = left.read(), right.read()
    count = min(max(1, size // 2), a.numel(), b.numel())
    return torch.stack([sample_tensor(a, count), sample_tensor(b, count).to(a)])
