"""Low-rank adapters in files: of peft, of diffusers, and of kohya's scripts.

An adapter adds ΔW = s·B·A. The scale s is not in the tensors of peft but in its `adapter_config.json`; kohya's files
have a number `alpha` for each layer, and s = alpha/r.
"""

import math
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from esdmon.weights.layers.lora import adalora_scale, low_rank
from esdmon.weights.matrix import UnreadableError
from esdmon.weights.state.tensors import Entry, State

_FIRST = re.compile(
    r"(?P<layer>.+?)[._](?P<first>lora_A|lora_embedding_A|lora_down|lora\.down|lora_linear_layer\.down)"
    r"(?:\.(?P<adapter>(?!weight$)[^.]+))?(?P<weight>\.weight)?"
)
_SECOND = {
    "lora_A": "lora_B",
    "lora_embedding_A": "lora_embedding_B",
    "lora_down": "lora_up",
    "lora.down": "lora.up",
    "lora_linear_layer.down": "lora_linear_layer.up",
}


def adapter_entries(state: State) -> Iterator[Entry]:
    """Iterate over the changes that adapters add to weights: `layer/lora.<adapter>`, as in a module of peft."""
    for name, outline in state.outlines.items():
        match = _FIRST.fullmatch(name)
        if match is None:
            continue
        first, layer = match["first"], match["layer"]
        second = name[: match.start("first")] + _SECOND[first] + name[match.end("first") :]
        singular = name[: match.start("first")] + "lora_E" + name[match.end("first") :] if first == "lora_A" else ""
        # A parameter without any of these is one of loralib's, an ordinary matrix.
        is_parameter = match["weight"] or match["adapter"] or singular in state.outlines
        if second not in state.outlines or outline.ndim < 2 or (first == "lora_A" and not is_parameter):
            continue
        label = f"lora.{match['adapter'] or 'default'}" if first.startswith(("lora_A", "lora_e")) else "lora"
        if singular in state.outlines:
            yield _adaptive_delta(state, f"{layer}/{label}", (name, second, singular))
        else:
            yield _delta(state, f"{layer}/{label}", layer, name, second)


def _adaptive_delta(state: State, name: str, parts: tuple[str, str, str]) -> Entry:
    """Return s·B·diag(E)·A of AdaLoRA, E the singular values; its rank in s is that of the beginning."""
    (rank, inputs), outputs = state.outlines[parts[0]].shape, state.outlines[parts[1]].shape[0]
    outline = torch.empty(1, max(inputs, outputs), min(rank, inputs, outputs), device="meta")
    alpha, first_rank = (state.config.get(key) for key in ("lora_alpha", "init_r"))
    is_known = isinstance(alpha, int | float) and isinstance(first_rank, int) and first_rank > 0
    scale = adalora_scale(alpha if alpha > 0 else first_rank, first_rank) if is_known else 1.0

    def read() -> Tensor:
        down, up, singular = (state.read(part) for part in parts)
        return low_rank(down * singular, up).mul(scale)

    return Entry(name, outline, read, parts, view="lora-delta")


def _delta(state: State, name: str, layer: str, first: str, second: str) -> Entry:
    a, b = state.outlines[first], state.outlines[second]
    rank = a.shape[0]
    alpha = next((key for key in (f"{layer}.alpha", f"{layer}.lora.alpha") if key in state.outlines), None)
    parts = (first, second) if alpha is None else (first, second, alpha)
    n = max(a.numel() // max(1, rank), b.shape[0])
    outline = torch.empty(1, n, min(rank, a.numel() // max(1, rank), b.shape[0]), device="meta")

    def read() -> Tensor:
        down, up = state.read(first).flatten(1), state.read(second).flatten(1)
        if down.shape[0] != up.shape[1]:
            raise UnreadableError(
                "skipped", f"its factors cannot be multiplied: {tuple(up.shape)} by {tuple(down.shape)}"
            )
        scale = _scale(state, layer, rank) if alpha is None else float(state.read(alpha)) / rank
        return low_rank(down, up).mul(scale)

    return Entry(name, outline, read, parts, view="lora-delta")


def _scale(state: State, layer: str, rank: int) -> float:
    """Return lora_alpha/r, or lora_alpha/√r with `use_rslora`; 1 where no configuration says it."""
    config = state.config
    alpha = _by_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or rank < 1:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _by_pattern(patterns: object, layer: str, default: object) -> object:
    """Return the value of the first pattern that ends the name of a layer, as peft matches them.

    The patterns are regular expressions; of those only `.*` is taken as one, so that a file cannot make us wait.
    """
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = str(pattern).removeprefix("^").removesuffix("$").replace("\\.", ".").replace(".*", "*")
        if fnmatchcase(layer, plain) or fnmatchcase(layer, f"*.{plain}"):
            return value
    return default
