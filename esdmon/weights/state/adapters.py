"""Read low-rank adapters in files: of peft, diffusers, kohya's scripts, and of layers with one adapter without a name.

An adapter adds ΔW = s·B·A. The scale s is not in the tensors of peft but in its `adapter_config.json`; kohya's files
have a number `alpha` for each layer, and s = alpha/r.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.weights.layers.lora import adalora_scale, factors_of_experts, low_rank
from esdmon.weights.layers.plain_lora import FACTORS, are_factors
from esdmon.weights.state.adapter_settings import adapter_rank, adapter_scale, target_parameters
from esdmon.weights.state.entries import Entry, State, computed_entry, unread_entry

_FIRST = re.compile(
    r"(?P<layer>.+?)[._](?P<first>lora_[Aa]|lora_embedding_A|lora_down|lora\.down|lora_linear_layer\.down)"
    r"(?:\.(?P<adapter>(?!weight$)[^.]+))?(?P<weight>\.weight)?"
)
_SECOND = FACTORS | {
    "lora_embedding_A": "lora_embedding_B",
    "lora_down": "lora_up",
    "lora.down": "lora.up",
    "lora_linear_layer.down": "lora_linear_layer.up",
}
_EXPERTS = re.compile(r"(^|\.)\w*experts(\.base_layer)*")
_IN_ORDER = ("gate_up_proj", "down_proj")  # of the parameters of experts, in modules of transformers
_UNKNOWN_RANK = (
    "adapters of experts lie in one factor, and how many is not known: pass the folder with their adapter_config.json"
)


@dataclass(frozen=True, slots=True)
class _Target:
    """The weight that an adapter of peft changes."""

    name: str
    """As in a module: of the layer, or of the parameter where that is no `weight`."""
    key: str
    """Name that the patterns of a configuration match."""
    count: int = 1
    """Matrices in the parameter: that of experts."""


def adapter_entries(state: State) -> Iterator[Entry]:
    """Iterate over the changes that adapters add to weights: `layer/lora.<adapter>`, as in a module of peft."""
    for name, outline in state.outlines.items():
        match = _FIRST.fullmatch(name)
        if match is None:
            continue
        first, layer = match["first"], match["layer"]
        second, singular = _beside(match, _SECOND[first]), _beside(match, "lora_E") if first == "lora_A" else ""
        if second not in state.outlines or outline.ndim < 2:
            continue
        has_name = match["weight"] or match["adapter"] or singular in state.outlines  # as peft writes it
        is_plain = first == "lora_a" or (first == "lora_A" and not has_name)
        weight = state.outlines.get(f"{layer}.weight")
        whole = None if weight is None else weight.shape
        if is_plain and not are_factors(outline.shape, state.outlines[second].shape, whole):
            continue
        is_of_peft = first in ("lora_A", "lora_embedding_A") and not is_plain
        label = f"lora.{match['adapter'] or 'default'}" if is_of_peft else "lora"
        if singular in state.outlines:
            yield _adaptive_delta(state, f"{layer}/{label}", (name, second, singular))
            continue
        try:
            target = _target(state, layer, outline.shape[0])
        except UnreadableError as error:
            yield unread_entry(state, f"{layer}/{label}", (name, second), error.reason)
        else:
            yield _delta(state, f"{target.name}/{label}", target, (name, second))


def _beside(match: re.Match[str], factor: str) -> str:
    """Return the name of another factor of the same adapter."""
    return f"{match.string[: match.start('first')]}{factor}{match.string[match.end('first') :]}"


def _adaptive_delta(state: State, name: str, parts: tuple[str, str, str]) -> Entry:
    """Return s·B·diag(E)·A of AdaLoRA, E the singular values; its rank in s is that of the beginning."""
    a, b = (state.outlines[part] for part in parts[:2])
    scale = _adaptive_scale(state)

    def compute(*factors: Tensor) -> Tensor:
        down, up, singular = (factor.flatten(1) for factor in factors)
        _check_factors(down, up)
        if singular.shape != (down.shape[0], 1):
            raise UnreadableError("skipped", f"it has {tuple(singular.shape)} singular values for rank {len(down)}")
        return low_rank(down * singular, up).mul(scale)

    outline = _outline(a.numel() // max(1, a.shape[0]), a, b)
    return replace(computed_entry(state, name, parts, compute, outline=outline), view="lora-delta")


def _adaptive_scale(state: State) -> float:
    alpha, rank = state.config.get("lora_alpha"), state.config.get("init_r")
    if not isinstance(alpha, int | float) or not isinstance(rank, int) or rank < 1:
        return 1.0
    return adalora_scale(alpha if alpha > 0 else rank, rank)


def _outline(inputs: int, a: Tensor, b: Tensor, count: int = 1) -> Tensor:
    """Return an outline of the N × r matrices that a change is read as."""
    return torch.empty(count, max(inputs, b.shape[0]), min(a.shape[0] // count, inputs, b.shape[0]), device="meta")


def _check_factors(down: Tensor, up: Tensor) -> None:
    if down.shape[0] != up.shape[1]:
        raise UnreadableError("skipped", f"its factors cannot be multiplied: {tuple(up.shape)} by {tuple(down.shape)}")


def _target(state: State, layer: str, rows: int) -> _Target:
    """Return the weight that the adapter of a layer changes, given the rows of its first factor.

    Raises:
        UnreadableError: for experts of an unknown number.
    """
    owner = layer
    while owner.endswith(".base_layer"):
        owner = owner.removesuffix(".base_layer")
    parameters = target_parameters(state.config, owner)
    if not parameters and not _EXPERTS.fullmatch(layer[layer.rfind(".", 0, len(owner)) + 1 :]):
        return _Target(layer, layer)
    depth = layer.count(".base_layer", len(owner))  # adapters of several parameters of one module are nested
    parameter = parameters[0] if len(parameters) == 1 else ""
    if set(parameters) == set(_IN_ORDER) and depth < len(_IN_ORDER):
        parameter = _IN_ORDER[::-1][depth]
    key = f"{owner}.{parameter}" if parameter else layer
    rank = adapter_rank(state.config, key) if parameters else None
    if rank is None or rows % rank:
        raise UnreadableError("skipped", _UNKNOWN_RANK)
    return _Target(owner if parameter == "weight" else key, key, rows // rank)


def _delta(state: State, name: str, target: _Target, factors: tuple[str, str]) -> Entry:
    first, second = factors
    a, b = state.outlines[first], state.outlines[second]
    rank, layer = a.shape[0] // target.count, target.key
    own_alpha = next((key for key in (f"{layer}.alpha", f"{layer}.lora.alpha") if key in state.outlines), None)
    middle = first.replace("lora_down", "lora_mid")
    kernel = state.shape(middle) if middle != first else None
    inputs = a.numel() // max(1, a.shape[0]) * math.prod((kernel or ())[2:])

    def compute(down: Tensor, up: Tensor, between: Tensor | None, alpha: Tensor | None) -> Tensor:
        down, up = down.flatten(1), up.flatten(1)
        _check_factors(down, up)
        if between is not None:
            if between.shape[:2] != (rank, rank):
                raise UnreadableError("skipped", f"its middle factor {tuple(between.shape)} does not fit rank {rank}")
            # A convolution in three steps, 1 × 1, k × k among r channels, and 1 × 1: the first two are one.
            down = torch.einsum("pq...,qi->pi...", between, down).flatten(1)
        scale = adapter_scale(state.config, layer, rank) if alpha is None else float(alpha) / rank
        if target.count > 1:
            down, up = factors_of_experts(down, up, target.count)
        return low_rank(down, up).mul(scale)

    parts = (first, second, None if kernel is None else middle, own_alpha)
    outline = _outline(inputs, a, b, target.count)
    return replace(computed_entry(state, name, parts, compute, outline=outline), view="lora-delta")
