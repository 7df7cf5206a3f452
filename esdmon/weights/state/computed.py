"""Compute weights from stored tensors: weight norm, spectral norm, pruning, other parametrisations.

The stored tensors are recognised by torch's names: `weight_g` and `weight_v`, `weight_orig` and `weight_mask`,
or `parametrizations.weight.original`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from esdmon.weights.state.entries import Entry, State, computed_entry, unread_entry

_PARAMETRIZED = ".parametrizations."


def computed_entries(state: State) -> Iterator[Entry]:
    """Iterate over the weights that are computed from several tensors."""
    for name in state.outlines:
        if name.endswith("_v") and f"{name[:-2]}_g" in state.outlines:
            yield computed_entry(state, name[:-2], (name, f"{name[:-2]}_g"), _weight_norm)
        elif name.endswith("_orig"):
            yield from _of_original(state, name.removesuffix("_orig"))
        elif _PARAMETRIZED in f".{name}" and name.endswith((".original", ".original0")):
            yield _of_parametrization(state, name)


def _of_original(state: State, name: str) -> Iterator[Entry]:
    if f"{name}_mask" in state.outlines:
        yield _pruned(state, name)
    elif f"{name}_u" in state.outlines and f"{name}_v" in state.outlines:
        yield computed_entry(state, name, (f"{name}_orig", f"{name}_u", f"{name}_v"), _spectral_norm)
    elif f"{name}_u" in state.outlines:  # of torch before 1.0, without what is needed for σ
        why = "spectral norm without its second vector: not read"
        yield unread_entry(state, name, (f"{name}_orig", f"{name}_u"), why)


def _pruned(state: State, name: str) -> Entry:
    """Return W·mask, which may be the input of a spectral norm or a weight norm."""
    parts = (f"{name}_orig", f"{name}_mask")
    base, _, last = name.rpartition("_")
    left, right, scale = (f"{base}_{part}" for part in "uvg")
    if last == "orig" and left in state.outlines and right in state.outlines:
        return computed_entry(state, base, (*parts, left, right), lambda w, mask, u, v: _spectral_norm(w * mask, u, v))
    if last == "v" and scale in state.outlines:
        return computed_entry(state, base, (*parts, scale), lambda v, mask, g: _weight_norm(v * mask, g))
    return computed_entry(state, name, parts, lambda weight, mask: weight * mask)


def _of_parametrization(state: State, original: str) -> Entry:
    path = original.rpartition(".")[0]  # owner.parametrizations.weight
    owner, _, attribute = f".{path}".rpartition(_PARAMETRIZED)
    name = f"{owner[1:]}.{attribute}" if owner else attribute
    parts = {key.removeprefix(f"{path}."): key for key in state.outlines if key.startswith(f"{path}.")}
    match sorted(parts):
        case ["original0", "original1"] if _is_weight_norm(state, parts):
            return computed_entry(state, name, (parts["original1"], parts["original0"]), _weight_norm)
        case ["0._u", "0._v", "original"]:
            return computed_entry(state, name, (parts["original"], parts["0._u"], parts["0._v"]), _spectral_norm)
        case ["0.base", "original"]:
            why = "orthogonal by a map that the file does not name; all its singular values are 1"
            return unread_entry(state, name, tuple(parts.values()), why)
    why = "computed by a parametrisation that the file does not describe"
    return unread_entry(state, name, (original, *(key for key in parts.values() if key != original)), why)


def _is_weight_norm(state: State, parts: dict[str, str]) -> bool:
    scale, direction = state.outlines[parts["original0"]], state.outlines[parts["original1"]]
    return scale.ndim in (0, direction.ndim) and scale.numel() in (1, *direction.shape)


def _weight_norm(direction: Tensor, scale: Tensor) -> Tensor:
    """Return g·v/‖v‖, the norms over all dimensions but the one along which g has a number each."""
    sides = [side for side, size in enumerate(scale.shape) if size > 1]
    dim = sides[0] if sides else (0 if scale.ndim else -1)
    return direction * (scale / torch.norm_except_dim(direction, 2, dim))


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return W/σ, with σ = uᵀ·W·v of the vectors that the power iteration has reached."""
    # In a transposed convolution the outputs are the second dimension.
    by_rows = weight if left.numel() == weight.shape[0] else weight.transpose(0, 1)
    return weight / torch.dot(left, by_rows.flatten(1) @ right)
