"""Define `State`, the tensors of a state dict, and `Entry`, a parameter of the model that is made of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class State:
    """Names, shapes and values of tensors, with their configuration."""

    outlines: Mapping[str, Tensor]
    """Tensors of the right shape and dtype, which may be on the meta device."""
    read: Callable[[str], Tensor]
    """Returns the tensor of a name."""
    is_lazy: bool
    """True if the values are on disk."""
    unreadable: Mapping[str, str]
    """Reasons why tensors cannot be read, by name."""
    config: Mapping[str, Any]
    """`config.json` or `adapter_config.json`; empty without one."""

    def shape(self, name: str) -> torch.Size | None:
        """Return the shape of a tensor; None if there is none of that name, or it has no shape."""
        return shape_of(self.outlines[name]) if name in self.outlines else None

    def settings(self, key: str) -> Mapping[str, Any]:
        """Return the settings under a key of the configuration; empty without any."""
        settings = self.config.get(key)
        return settings if isinstance(settings, dict) else {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter of the model: a tensor of the state dict, or computed from several."""

    name: str
    """Name of the parameter in the model."""
    outline: Tensor
    """Outline of the weight that the layer uses."""
    read: Callable[[], Tensor]
    parts: tuple[str, ...]
    """Names of the stored tensors from which it is computed."""
    view: str = "weight"
    unreadable: str = ""
    """Reason why it cannot be read."""
    is_plain: bool = False
    """True if it is one unchanged tensor of the state dict."""


def shape_of(tensor: Tensor) -> torch.Size | None:
    """Return the shape of a tensor; None for a nested tensor, which has none."""
    with suppress(Exception):
        return tensor.shape
    return None


def plain_entry(state: State, name: str) -> Entry:
    """Return the entry of one tensor, unchanged."""
    outline = state.outlines[name]
    return Entry(
        name, outline, partial(state.read, name), (name,), unreadable=state.unreadable.get(name, ""), is_plain=True
    )


def computed_entry(
    state: State,
    name: str,
    parts: Sequence[str | None],
    compute: Callable[..., Tensor],
    *,
    outline: Tensor | None = None,
) -> Entry:
    """Return the entry of a weight that is computed from several tensors.

    Args:
        state: the state dict.
        name: of the weight.
        parts: names of the tensors; None, or a name that the state dict lacks, for an optional one.
        compute: takes the tensors, and None for one that is lacking.
        outline: of the weight; by default it has the shape of the first tensor.
    """
    held = tuple(part for part in parts if part is not None and part in state.outlines)

    def read() -> Tensor:
        return compute(*(state.read(part) if part in held else None for part in parts))

    return Entry(name, _outline_like(state.outlines[held[0]]) if outline is None else outline, read, held)


def unread_entry(state: State, name: str, parts: tuple[str, ...], why: str) -> Entry:
    """Return the entry of a weight that is made of these tensors, and why it cannot be read."""
    first = parts[0]
    return Entry(name, _outline_like(state.outlines[first]), partial(state.read, first), parts, unreadable=why)


def _outline_like(outline: Tensor) -> Tensor:
    """Return a tensor of the same shape on the meta device: of the same dtype, or float32 for packed numbers."""
    dtype = outline.dtype if outline.is_floating_point() and outline.dtype.itemsize > 1 else torch.float32
    return torch.empty(outline.shape, dtype=dtype, device="meta")
