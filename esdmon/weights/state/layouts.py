"""Determine which matrices a parameter of a state dict holds: gates, fused projections, experts, kernel positions.

A module knows its layout. In a file it follows from names that only one layout has, from the shapes of neighbours, and
from `config.json` where there is one. What remains ambiguous is read as one matrix.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from esdmon.weights import stacks
from esdmon.weights.layers.attention import LAYOUTS, ToStack, equal_columns, rows
from esdmon.weights.layers.experts import side_of_halves
from esdmon.weights.layers.torch_nn import GATES

_RECURRENT = re.compile(r"(?P<prefix>.*)weight_(?P<of>ih|hh|hr)_l(?P<layer>\d+(_reverse)?)")
_BY_GATES = {4: GATES["LSTM"], 3: GATES["GRU"], 1: GATES["RNN_TANH"]}
_EXPERTS = re.compile(r"(^|\.)(\w*experts?|\w*moe)\.")
_PATCHES = re.compile(r"(^|[._])patch_?embed\w*(\.proj\w*)?\.weight$")
_NUMBER = re.compile(r"(?<=\.)\d{1,6}(?=\.)")
_TIMM = re.compile(
    r"(test_)?(aimv|beit|caformer|cait|coat_|convit|crossvit|csatv|davit|deepseek_vit|deit|edgenext|eva|fastvit|flexivit"
    r"|gcvit|hiera|mobilevit_|mvitv|naflexvit|nest|pit_|qwen\d_vit|sam\d_|samvit|swin|twins|vit(?!_dlittle|_dwee)|volo|xcit)"
)
"""Architectures in a `config.json` of timm whose q, k and v are thirds of `qkv`, by the layouts of their modules."""
_LARGEST_KERNEL = 64  # last side of a 3-D weight that may be a convolution; wav2vec's is longer, and its name says so
_FEW_OUTPUTS = 16  # last side from which a weight with fewer outputs than that is a stack of matrices; our choice


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a parameter."""

    label: str
    """What stands behind the slash; empty for a parameter that is one matrix."""
    to_stack: ToStack


Shapes = Mapping[str, torch.Size]
"""Shape of each parameter of a state dict, by name."""


def parts_of(name: str, shapes: Shapes, config: Mapping[str, Any], *, groups: int | None = None) -> list[Part]:
    """Return the matrices of a parameter of two to five dimensions; none where its layout is not known.

    Args:
        name: of the parameter.
        shapes: of it and all others that are known.
        config: what `config.json` says.
        groups: of a convolution; None where nothing says it but the shapes.
    """
    shape = shapes[name]
    if len(shape) == 2:
        split = _recurrent(name, shapes) or _fused(name, shapes, config)
        return [Part(label, to_stack) for label, to_stack in split.items()] or [Part("", stacks.linear)]
    if len(shape) == 3 and (_EXPERTS.search(name) or _is_stack(name, shape)):
        return _experts(name, shapes)
    return _kernel(name, shapes, groups) if name.rpartition(".")[2] == "weight" else []


def _kernel(name: str, shapes: Shapes, groups: int | None) -> list[Part]:
    """Return a weight of three to five dimensions as one slice for each position of a kernel."""
    shape = shapes[name]
    if len(shape) == 3 and "bilinear" in name.lower():
        return [Part("", stacks.identity)]
    if len(shape) == 3 and shape[0] == 1 and shape[2] > _LARGEST_KERNEL:
        return []  # positions, with a side for the batch
    if len(shape) == 5 and shape[0] == 1 and shape[2] > shape[3] == shape[4]:
        return [Part("", stacks.modulated)]
    return [Part("", partial(stacks.convolution, groups=groups or _groups(name, shapes), dimensions=len(shape)))]


def _recurrent(name: str, shapes: Shapes) -> dict[str, ToStack]:
    """Return the gates of an LSTM or GRU, by the number of rows for each of its outputs."""
    match = _RECURRENT.fullmatch(name)
    if match is None or match["of"] == "hr":
        return {}
    of_state = shapes.get(f"{match['prefix']}weight_hh_l{match['layer']}")
    projection = shapes.get(f"{match['prefix']}weight_hr_l{match['layer']}")
    if of_state is None or len(of_state) != 2:
        return {}
    hidden = of_state[1] if projection is None else projection[-1]
    labels = _BY_GATES.get(shapes[name][0] // hidden if hidden else 0, "")
    return rows(labels, [hidden] * len(labels)) if len(labels) > 1 else {}


def _fused(name: str, shapes: Shapes, config: Mapping[str, Any]) -> dict[str, ToStack]:
    """Return the projections that a weight holds, by the architecture's layout or by an unambiguous name."""
    path, _, last = name.rpartition(".")
    if last == "in_proj_weight" and shapes[name][0] == 3 * shapes[name][1]:
        return rows("qkv", [shapes[name][1]] * 3)
    if last != "weight":
        return {}
    attribute = path.rpartition(".")[2]
    for facts, kind in _architectures(config):
        for owner, layouts in LAYOUTS.items():
            if attribute in layouts and owner.lower().startswith(kind):
                return layouts[attribute](facts, torch.empty(shapes[name], device="meta"))
    if attribute == "qkv" and _TIMM.match(_architecture_of_timm(config)):
        return _thirds_by_output(path.removesuffix(attribute), shapes[name], shapes)
    by_name = _BY_NAME.get(attribute)
    return {} if by_name is None else by_name(path.removesuffix(attribute), shapes[name], shapes)


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


ByName = Callable[[str, torch.Size, Shapes], dict[str, ToStack]]
"""`(path of the owner with its dot, shape, shapes of all)` to the projections; empty where the shapes contradict."""


def _conv1d(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
    """Return q, k and v of GPT-2's Conv1D, (inputs, 3 · inputs); a linear layer would be (3 · inputs, inputs)."""
    is_fused = shape[1] == 3 * shape[0]
    is_cross_attention = shape[1] == 2 * shape[0] and f"{owner}q_attn.weight" in shapes  # k and v only
    if not is_fused and not is_cross_attention:
        return {}
    return equal_columns(SimpleNamespace(split_size=shape[0]), torch.empty(shape, device="meta"))


def _thirds(*outputs: str) -> ByName:
    def split(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
        is_attention = any(f"{owner}{output}.weight" in shapes for output in outputs) and shape[0] == 3 * shape[1]
        return rows("qkv", [shape[1]] * 3) if is_attention else {}

    return split


def _thirds_by_output(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
    """Return q, k and v, where the output projection takes as many inputs as each has outputs."""
    output = shapes.get(f"{owner}proj.weight", ())
    return rows("qkv", [output[1]] * 3) if len(output) == 2 and shape[0] == 3 * output[1] else {}


def _grouped(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
    """Return q, k and v, where the inputs of the output projection are the outputs of q."""
    output = shapes.get(f"{owner}o_proj.weight", ())
    queries = output[1] if len(output) == 2 else 0
    keys = (shape[0] - queries) // 2
    return rows("qkv", [queries, keys, keys]) if queries and 0 < keys <= queries else {}


def _halves(first: str, second: str, beside: str) -> ByName:
    def split(owner: str, shape: torch.Size, shapes: Shapes) -> dict[str, ToStack]:
        output = shapes.get(f"{owner}{beside}", ())
        fits = len(output) == 2 and (2 * output[1] == shape[0] or beside == "A_log")
        return rows((first, second), [shape[0] // 2] * 2) if fits else {}

    return split


_BY_NAME: dict[str, ByName] = {
    "att_proj": _thirds("out_proj"),
    "c_attn": _conv1d,
    "gate_up_proj": _halves("gate", "up", "down_proj.weight"),
    "in_proj": _halves("x", "gate", "A_log"),
    "qkv_proj": _grouped,
    "Wi": _halves("input", "gate", "Wo.weight"),
    "Wqkv": _thirds("Wo", "out_proj"),
}


def _is_stack(name: str, shape: torch.Size) -> bool:
    """Return whether a 3-D weight is a stack of matrices, as of the relations of a graph.

    Its first side is the shortest, and its last is too long for that of a kernel with so few outputs.
    """
    return name.endswith(".weight") and 1 < shape[0] < min(shape[1:]) and shape[2] >= _FEW_OUTPUTS


def _experts(name: str, shapes: Shapes) -> list[Part]:
    """Return the experts of one parameter; gate and up-projection apart where the down-projection says their sides."""
    owner, _, last = name.rpartition(".")
    dim = side_of_halves(shapes[name], shapes.get(f"{owner}.down_proj", ())) if last == "gate_up_proj" else None
    if dim is None:
        return [Part("", stacks.identity)]
    is_interleaved = f"{owner}.gate_up_proj_bias" in shapes  # GPT-OSS, the only one with biases, alternates
    split = partial(stacks.half_of_experts, dim=dim, interleaved=is_interleaved)
    return [Part("gate", partial(split, half=0)), Part("up", partial(split, half=1))]


def _groups(name: str, shapes: Shapes) -> int:
    """Return the groups of a convolution, as far as it follows from the layers around it.

    A depthwise one has one input for each group. In a bottleneck of 1 × 1, k × k and 1 × 1, the outputs of the first
    are the inputs of the second.
    """
    outputs, inputs = shapes[name][:2]
    if inputs == 1:
        return 1 if _reads_one_channel(name, shapes) else outputs
    if "pos_conv" in name and outputs % inputs == 0:
        return outputs // inputs  # added to its own input, as in wav2vec 2: as many inputs as outputs
    before, after = _around(name, shapes)
    is_bottleneck = before is not None and after is not None and before[0] == outputs == after[1]
    if (
        is_bottleneck
        and before is not None
        and outputs > inputs
        and outputs % inputs == 0
        and max(shapes[name][2:]) > 1
    ):
        return outputs // inputs
    return 1


def _reads_one_channel(name: str, shapes: Shapes) -> bool:
    """Return whether a convolution of one input is dense and reads one channel, as that of a sound or of a grey image.

    So does one of patches; the first of a numbered series, where the next has more inputs; and one that no layer of
    the same name in other blocks is like, where no convolution makes the channels that a depthwise one would read.
    """
    if _PATCHES.search(name):
        return True
    series = _series(name, shapes)
    if len(series) > 1:
        return series[0] == name and shapes[series[1]][1] > 1
    outputs = shapes[name][0]
    return not any(len(shape) > 2 and shape[0] == outputs and shape[1] not in (1, outputs) for shape in shapes.values())


def _series(name: str, shapes: Shapes) -> list[str]:
    """Return the weights that differ from one by numbers in their names alone, in the order of the numbers."""
    pattern = _NUMBER.sub("#", name)
    series = [key for key in shapes if _NUMBER.sub("#", key) == pattern and len(shapes[key]) == len(shapes[name])]
    return sorted(series, key=lambda key: [int(number) for number in _NUMBER.findall(key)])


def _around(name: str, shapes: Shapes) -> tuple[torch.Size | None, torch.Size | None]:
    """Return the shapes of the convolutions before and after one, where both are 1 × 1."""
    convolutions = [key for key, shape in shapes.items() if len(shape) == len(shapes[name]) and key.endswith("weight")]
    place = convolutions.index(name)
    around = [shapes[key] for key in (*convolutions[max(0, place - 1) : place], *convolutions[place + 1 : place + 2])]
    if len(around) < 2 or any(max(shape[2:]) > 1 for shape in around):
        return None, None
    return around[0], around[1]
