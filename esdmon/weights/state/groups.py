"""Infer the groups of a convolution in a file, from the names and shapes of the layers around it."""

import re
from collections.abc import Sequence
from itertools import takewhile

from esdmon.records.table import natural_key
from esdmon.weights.layers.fused import Shapes

_PATCHES = re.compile(r"(^|[._])patch_?embed\w*(\.proj\w*)?\.weight$")
_NUMBER = re.compile(r"(?<=\.)\d{1,6}(?=\.)")
_DIGITS = re.compile(r"\d{1,6}")
_FEW_CHANNELS = 8  # of an input; our choice
_INPUT = re.compile(
    r"(^|\.)(stem(\.(0|conv1|proj))*|_?conv_?stem|conv_?in|conv_?init|in_?conv)(\.conv)?\.weight$|^conv1\.weight$",
    re.IGNORECASE,
)
"""Names of the convolution that reads the input of a network."""
_DEPTHWISE = re.compile(
    r"(^|[._])(dw|depth_?wise)(_?conv\d*)?(\.conv)?\.weight$|conv_?(dw|depthwise)\.weight$", re.IGNORECASE
)


def groups_of(name: str, shapes: Shapes) -> int:
    """Return the groups of a convolution, if they follow from the layers around it.

    A depthwise convolution has one input for each group. In a bottleneck of 1 × 1, k × k and 1 × 1, the outputs of the
    first are the inputs of the second. A bias with another number of outputs is that of a transposed one: its weight is
    (inputs, outputs/g).
    """
    outputs, inputs = shapes[name][:2]
    bias = bias_of(name, shapes)
    if len(bias) == 1 and bias[0] != outputs and inputs > 0:
        groups, rest = divmod(bias[0], inputs)
        if groups > 0 and rest == 0 == outputs % groups:
            return groups
    if inputs == 1:
        return 1 if _reads_one_channel(name, shapes) else outputs
    if not 0 < inputs < outputs or outputs % inputs:
        return 1
    # Those of wav2vec 2 are added to their own input: they have as many inputs as outputs, as those called depthwise.
    is_named_so = "pos_conv" in name or _DEPTHWISE.search(name)
    return outputs // inputs if is_named_so or _is_in_bottleneck(name, shapes) else 1


def bias_of(name: str, shapes: Shapes) -> Sequence[int]:
    """Return the shape of the bias beside a `weight`; empty without one."""
    path, _, last = name.rpartition(".")
    return shapes.get(f"{path}.bias" if path else "bias", ()) if last == "weight" else ()


def _is_in_bottleneck(name: str, shapes: Shapes) -> bool:
    """Return whether a convolution, or several alike in a row, lie between two of 1 × 1 with its number of outputs.

    All are of one block: the last convolution of the block before may make more channels than that block passes on, as
    behind a gate. A convolution of 1 × 1 with as many inputs as the kernel is taken to lie beside it, unless the kernel
    has others like it in a series.
    """
    convolutions = [key for key, shape in shapes.items() if len(shape) == len(shapes[name]) and key.endswith("weight")]
    first = last = convolutions.index(name)
    while first > 0 and _follow_each_other(convolutions[first - 1], name, shapes):
        first -= 1
    while last + 1 < len(convolutions) and _follow_each_other(name, convolutions[last + 1], shapes):
        last += 1
    if not _is_kernel(shapes[name]) or first == 0 or last + 1 == len(convolutions):
        return False
    before, after = convolutions[first - 1], convolutions[last + 1]
    is_between = shapes[before][0] == shapes[name][0] == shapes[after][1]
    are_points = not _is_kernel(shapes[before]) and not _is_kernel(shapes[after])
    is_of_block_before = _are_blocks_apart(before, name) and not _are_blocks_apart(name, after)
    if not is_between or not are_points or (is_of_block_before and "group" not in name):
        return False
    is_like_others = sum(shapes[key] == shapes[name] for key in _series(name, shapes)) > 1
    return shapes[before][1] != shapes[name][1] or is_like_others


def _follow_each_other(first: str, second: str, shapes: Shapes) -> bool:
    """Return whether two convolutions of one shape may be in a row: numbered ones are branches beside each other."""
    return shapes[first] == shapes[second] and not _differ_by_numbers(first.split("."), second.split("."))


def _are_blocks_apart(first: str, second: str) -> bool:
    """Return whether the first parts that differ in two names, except for the last ones of layers, are numbers."""
    return _differ_by_numbers(first.split(".")[:-2], second.split(".")[:-2])


def _differ_by_numbers(first: Sequence[str], second: Sequence[str]) -> bool:
    """Return whether the first parts that differ in two paths are both numbers."""
    different = next((pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]), ("", ""))
    return all(part.isdecimal() for part in different)


def _is_kernel(shape: Sequence[int]) -> bool:
    """Return whether a convolution has more than one position."""
    return max(shape[2:]) > 1


def _reads_one_channel(name: str, shapes: Shapes) -> bool:
    """Return whether a convolution of one input is dense and reads one channel, as that of a sound or of a grey image.

    It is one of these:

    - it embeds patches, or is named like the convolution that reads the input of a network;
    - it is the first in a numbered list, and the next kernel in the list reads its outputs;
    - it is the first in a series of kernels whose names differ by numbers alone, and a later one has more inputs;
    - it follows, in a numbered list, a layer that makes one channel;
    - it is the only one of its series, and is the first layer of the network or of a part of it, or no convolution
      makes the channels that a depthwise one would read; in a numbered list none of 1 × 1 is right behind it.

    For a convolution of 1 × 1 around a kernel the answer is that of the kernel.
    """
    if _PATCHES.search(name) or _INPUT.search(name):
        return True
    if _DEPTHWISE.search(name):
        return False
    outputs = shapes[name][0]
    kernel = _kernel_beside(name, shapes)
    if kernel is not None:
        return _reads_one_channel(kernel, shapes)
    if _begins_a_list(name, shapes) or _follows_one_channel(name, shapes):
        return True
    alike = _series(name, shapes)
    if len(alike) > 1:
        return alike[0] == name and any(shapes[key][1] > 1 for key in alike)
    is_made = any(len(shape) > 2 and shape[0] == outputs and shape[1] not in (1, outputs) for shape in shapes.values())
    return not _is_separable(name, shapes) and (not is_made or _is_first_layer(name, shapes))


def _numbered(name: str, step: int) -> str:
    """Return the name of a layer beside another in a numbered list; empty where there is no number."""
    before, number, behind = _at_last_number(_NUMBER, name)
    return f"{before}{int(number) + step}{behind}" if number else ""


def _at_last_number(pattern: re.Pattern[str], name: str) -> tuple[str, str, str]:
    """Return what is before the last number in a name, the number, and what is behind it; all empty without one."""
    spans = [match.span() for match in pattern.finditer(name)]
    if not spans:
        return "", "", ""
    start, stop = spans[-1]
    return name[:start], name[start:stop], name[stop:]


def _with_any_number(before: str, behind: str, shapes: Shapes) -> list[str]:
    """Return the names that have a number between these two parts."""
    pattern = re.compile(rf"{re.escape(before)}\d{{1,6}}{re.escape(behind)}")
    return [name for name in shapes if pattern.fullmatch(name)]


def _follows_one_channel(name: str, shapes: Shapes) -> bool:
    """Return whether the layer before makes one channel; an activation may be between."""
    before: Sequence[int] = shapes.get(_numbered(name, -1), shapes.get(_numbered(name, -2), ()))
    return list(before[:1]) == [1]


def _is_separable(name: str, shapes: Shapes) -> bool:
    """Return whether the next layer is a convolution of 1 × 1 that mixes the outputs, without an activation between."""
    after, own = shapes.get(_numbered(name, 1), ()), shapes[name]
    return len(after) == len(own) and list(after[1:2]) == list(own[:1]) and not _is_kernel(after)


def _is_first_layer(name: str, shapes: Shapes) -> bool:
    """Return whether a convolution is the first layer of the network, or of a part of it such as `encoder`.

    No layer before it makes what it reads, other than branches beside it, and a later convolution reads all of what it
    makes. A depthwise one there has as many outputs as the input has channels, which are few.
    """
    outputs = shapes[name][0]
    layers = [key for key, shape in shapes.items() if len(shape) > 1]
    columns = zip(*(key.split(".")[:-1] for key in layers), strict=False)
    depth = len(list(takewhile(lambda parts: len(set(parts)) == 1, columns)))
    part = ".".join([*name.split(".")[: depth + 1], ""])
    for inside in (layers, [key for key in layers if key.startswith(part)]):
        at = inside.index(name)
        is_read = any(len(shapes[key]) == len(shapes[name]) and shapes[key][1] == outputs for key in inside[at + 1 :])
        if is_read and outputs >= _FEW_CHANNELS and all(shapes[key][:2] == (outputs, 1) for key in inside[:at]):
            return True
    return False


def _kernel_beside(name: str, shapes: Shapes) -> str | None:
    """Return the kernel around which a convolution of 1 × 1 leads: `conv1`, of as many channels, for `conv3`."""
    before, number, behind = _at_last_number(_DIGITS, name)
    if not number or _is_kernel(shapes[name]):
        return None
    alike = (key for key in _with_any_number(before, behind, shapes) if shapes[key][:2] == shapes[name][:2])
    return next((key for key in alike if len(shapes[key]) > 2 and _is_kernel(shapes[key])), None)


def _begins_a_list(name: str, shapes: Shapes) -> bool:
    """Return whether a convolution is the first in a numbered list, and the next kernel in it reads its outputs.

    That one may be depthwise, where an activation and no layer of 1 × 1 is between them, as in NeMo's Conformers.
    """
    before, number, behind = _at_last_number(_NUMBER, name)
    if not number:
        return False
    listed = _with_any_number(before, behind, shapes)
    in_order = sorted((key for key in listed if len(shapes[key]) == len(shapes[name])), key=natural_key)
    kernels = [key for key in in_order if _is_kernel(shapes[key])]
    if len(kernels) < 2 or kernels[0] != name:
        return False
    following = kernels[1]
    if shapes[following] == shapes[name] and behind == ".weight":
        other = int(following.removeprefix(before).removesuffix(behind))
        return in_order.index(following) == in_order.index(name) + 1 and other > int(number) + 1
    return shapes[following][1] > 1 and shapes[name][0] % shapes[following][1] == 0  # which may have groups


def _series(name: str, shapes: Shapes) -> list[str]:
    """Return the kernels of one size whose names differ by numbers alone, in the order of the numbers."""
    pattern, size = _DIGITS.sub("#", name), shapes[name][2:]
    alike = [key for key, shape in shapes.items() if shape[2:] == size and _DIGITS.sub("#", key) == pattern]
    return sorted(alike, key=natural_key)
