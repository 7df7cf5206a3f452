"""Determine the matrices in a parameter of a state dict: gates, fused projections, experts, kernel positions.

A module knows its layout. For a file the layout follows from names that only one layout has, from the shapes of
neighbours, and from `config.json` if there is one. An ambiguous parameter is read as one matrix.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from esdmon.weights import stacks
from esdmon.weights.layers.experts import side_of_halves
from esdmon.weights.layers.fused import BY_NAME, LAYOUTS, Shapes, rows, thirds_by_output
from esdmon.weights.layers.torch_nn import BY_NUMBER
from esdmon.weights.stacks import ToStack
from esdmon.weights.state.groups import bias_of, groups_of

_RECURRENT = re.compile(r"(?P<prefix>.*)weight_(?P<of>ih|hh|hr)(?P<layer>(_l\d+(_reverse)?)?)")
_EXPERTS = re.compile(r"(^|\.)(\w*experts?|\w*moe)\.")
_TIMM = re.compile(
    r"(test_)?(aimv|beit|caformer|cait|coat_|convit|crossvit|csatv|davit|deepseek_vit|deit|edgenext|eva|fastvit|flexivit"
    r"|gcvit|hiera|mobilevit_|mvitv|naflexvit|nest|pit_|qwen\d_vit|sam\d_|samvit|swin|twins|vit(?!_dlittle|_dwee)|volo|xcit)"
)
"""Architectures in a `config.json` of timm whose q, k and v are thirds of `qkv`, by the layouts of their modules."""
_TO_HEADS = {"query", "key", "value"}
_FROM_HEADS = {"attention_output", "out"}
"""Projections of attention in Keras and Flax, whose kernels have a side for the heads."""
_GATE_UP = {".gate_up_proj": ".down_proj", ".linear_fc1.weight": ".linear_fc2.weight"}
"""End of the name of experts with gate and up-projection -> that of their down-projection, beside it."""
_LARGEST_KERNEL = 64  # last side of a 3-D weight that may be a convolution; wav2vec's is longer, and its name says so
_FEW_OUTPUTS = 16  # last side from which a weight with fewer outputs than that is a stack of matrices; our choice


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a parameter."""

    label: str
    """Name after the slash; empty for a parameter that is one matrix."""
    to_stack: ToStack


def parts_of(name: str, shapes: Shapes, config: Mapping[str, Any], *, groups: int | None = None) -> list[Part]:
    """Return the matrices of a parameter of two to five dimensions; none if its layout is not known.

    Args:
        name: of the parameter.
        shapes: shapes of this and all other known parameters.
        config: content of `config.json`.
        groups: number of groups of a convolution; None if it is known from shapes only.
    """
    shape = shapes[name]
    if len(shape) == 2:
        split = _recurrent(name, shapes) or _fused(name, shapes, config)
        return [Part(label, to_stack) for label, to_stack in split.items()] or [Part("", stacks.linear)]
    if len(shape) == 3 and (_EXPERTS.search(name) or _is_stack(name, shape)):
        return _experts(name, shapes)
    if _is_ensemble(name, shapes):
        return [Part("", stacks.identity if len(shape) == 3 else stacks.of_layers)]
    if name.rpartition(".")[2] == "weight":
        return _kernel(name, shapes, groups)
    return _with_inputs_before_outputs(name, shape)


def _with_inputs_before_outputs(name: str, shape: torch.Size) -> list[Part]:
    """Return a `kernel` of Keras or Flax: positions, inputs and outputs of a convolution, or the heads of attention."""
    owner, own = ["", *re.split(r"[./]", name)][-2:]
    if not own.endswith("kernel") or _has_positions_last(shape):
        return []
    if len(shape) > 3 or "conv" in owner.lower():
        return [Part("", stacks.convolution_inputs_first)]
    if owner in _TO_HEADS:
        return [Part("", stacks.to_heads)]
    return [Part("", stacks.from_heads)] if owner in _FROM_HEADS else []


def _has_positions_last(shape: torch.Size) -> bool:
    """Return whether a kernel is square in its last sides, as torch has them: in a module of the user's own, a blur."""
    first, second, *sides = shape
    is_square = len(sides) > 1 and len(set(sides)) == 1
    return is_square and (sides[0] < min(first, second) or (second == 1 and sides[0] % 2 == 1))


def _kernel(name: str, shapes: Shapes, groups: int | None) -> list[Part]:
    """Return a weight of three to five dimensions as one slice for each position of a kernel."""
    shape = shapes[name]
    if len(shape) == 3 and "bilinear" in name.lower():
        return [Part("", stacks.identity)]
    if len(shape) == 3 and shape[0] == 1 and shape[2] > _LARGEST_KERNEL:
        return []  # positions, with a side for the batch
    if len(shape) == 5 and shape[0] == 1 and shape[2] > shape[3] == shape[4]:
        return [Part("", stacks.of_layers)]
    return [Part("", partial(stacks.convolution, groups=groups or groups_of(name, shapes), dimensions=len(shape)))]


def _recurrent(name: str, shapes: Shapes) -> dict[str, ToStack]:
    """Return the gates of an LSTM or GRU, or of a cell of one, by the number of rows for each of its outputs."""
    match = _RECURRENT.fullmatch(name)
    if match is None or match["of"] == "hr":
        return {}
    of_state = shapes.get(f"{match['prefix']}weight_hh{match['layer']}")
    projection = shapes.get(f"{match['prefix']}weight_hr{match['layer']}")
    if of_state is None or len(of_state) != 2:
        return {}
    hidden = of_state[1] if projection is None else projection[-1]
    labels = BY_NUMBER.get(shapes[name][0] // hidden if hidden else 0, "")
    return rows(labels, [hidden] * len(labels)) if len(labels) > 1 else {}


def _fused(name: str, shapes: Shapes, config: Mapping[str, Any]) -> dict[str, ToStack]:
    """Return the projections that a weight holds, by the architecture's layout or by an unambiguous name."""
    path, _, last = name.rpartition(".")
    if last == "in_proj_weight" and _is_of_torch(path, shapes) and shapes[name][0] == 3 * shapes[name][1]:
        return rows("qkv", [shapes[name][1]] * 3)
    if last != "weight":
        return {}
    attribute = path.rpartition(".")[2]
    for facts, kind in _architectures(config):
        for owner, layouts in LAYOUTS.items():
            if attribute in layouts and owner.lower().startswith(kind):
                return layouts[attribute](facts, torch.empty(shapes[name], device="meta"))
    if attribute == "qkv" and _TIMM.match(_architecture_of_timm(config)):
        return thirds_by_output(path.removesuffix(attribute), shapes[name], shapes)
    by_name = BY_NAME.get(attribute)
    return {} if by_name is None else by_name(path.removesuffix(attribute), shapes[name], shapes)


def _is_of_torch(path: str, shapes: Shapes) -> bool:
    """Return whether `in_proj_weight` is that of torch's attention, which has a bias if its output has one.

    SpeechBrain's has none, and its q, k and v alternate by head.
    """
    owner = f"{path}." if path else ""
    return f"{owner}in_proj_bias" in shapes or f"{owner}out_proj.bias" not in shapes


def _architecture_of_timm(config: Mapping[str, Any]) -> str:
    """Return the architecture that a configuration of timm names, or of open_clip for its images; empty for others."""
    of_model = config.get("model_cfg")
    of_images = of_model.get("vision_cfg") if isinstance(of_model, dict) else None
    name = of_images.get("timm_model_name") if isinstance(of_images, dict) else config.get("architecture")
    return name if isinstance(name, str) else ""


def _architectures(config: Mapping[str, Any]) -> list[tuple[SimpleNamespace, str]]:
    """Return what layouts ask of a module, and the beginning of its class, for each model that a config describes."""
    found = []
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        kind = part.get("model_type")
        if isinstance(kind, str) and kind:
            found.append((_facts(part), kind.replace("_", "").replace("-", "").lower()))
    return found


def _facts(config: Mapping[str, Any]) -> SimpleNamespace:
    def number(*keys: str) -> int:
        return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), 0)

    width, heads = number("hidden_size", "n_embd", "d_model"), number("num_attention_heads", "n_head", "n_heads")
    size = number("head_dim") or (width // heads if heads else 0)
    return SimpleNamespace(
        split_size=width,
        head_dim=size,
        head_size=size,
        num_key_value_heads=number("num_key_value_heads") or heads,
        config=SimpleNamespace(num_attention_heads=heads),
    )


def _is_stack(name: str, shape: torch.Size) -> bool:
    """Return whether a 3-D weight is a stack of matrices, as of the relations of a graph.

    Its first side is the shortest, and its last is too long for that of a kernel with so few outputs.
    """
    return name.endswith(".weight") and 1 < shape[0] < min(shape[1:]) and shape[2] >= _FEW_OUTPUTS


def _is_ensemble(name: str, shapes: Shapes) -> bool:
    """Return whether a weight holds those of several layers, as its bias does: (layers, outputs), or all in a row.

    `torch.func.stack_module_state` makes such, and so do agents with more than one critic, and linear layers of heads.
    """
    layers, *sides = shape = shapes[name]
    bias = bias_of(name, shapes)
    if len(bias) == 1:
        return len(shape) == 3 and layers > 1 and sides[0] > 1 and bias[0] == layers * sides[0]
    is_stacked = len(bias) > 1 and bias != shape and bias[0] == layers
    return is_stacked and bias[-1] in sides[:2] and math.prod(bias) == layers * bias[-1]


def _experts(name: str, shapes: Shapes) -> list[Part]:
    """Return the experts of one parameter; gate and up-projection apart where the down-projection says their sides."""
    down = next((name.removesuffix(both) + down for both, down in _GATE_UP.items() if name.endswith(both)), "")
    dim = side_of_halves(shapes[name], shapes.get(down, ()))
    if dim is None:
        return [Part("", stacks.identity)]
    is_interleaved = f"{name}_bias" in shapes  # GPT-OSS, the only one with biases, alternates
    split = partial(stacks.half_of_experts, dim=dim, interleaved=is_interleaved)
    return [Part("gate", partial(split, half=0)), Part("up", partial(split, half=1))]
