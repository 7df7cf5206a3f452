"""Experts that a file keeps one by one, and the module that loads it as one parameter.

Since version 5, transformers merges the experts of a block when it loads a model, and takes them apart when it saves
one. A folder with a `config.json` that counts experts is read as the module is.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esdmon.weights.layers.experts import EXPERT_COUNTS
from esdmon.weights.state.tensors import Entry, State, outline_like

_NUMBERED = re.compile(r"(?P<block>.*\bexperts)\.(?P<number>\d{1,6})\.(?P<part>\w+)\.weight")
_MERGED = {
    "gate_proj": "gate_up_proj/gate",
    "w1": "gate_up_proj/gate",
    "up_proj": "gate_up_proj/up",
    "w3": "gate_up_proj/up",
    "down_proj": "down_proj",
    "w2": "down_proj",
}


def expert_entries(state: State) -> Iterator[Entry]:
    """Iterate over the merged experts, each block's gate, up- and down-projection; of equal shapes only."""
    if not counts_experts(state.config):
        return
    blocks: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for name in state.outlines:
        match = _NUMBERED.fullmatch(name)
        if match is not None and match["part"] in _MERGED:
            blocks[f"{match['block']}.{_MERGED[match['part']]}"][int(match["number"])] = name
    for merged, by_number in blocks.items():
        parts = [by_number[number] for number in sorted(by_number)]
        shapes = {state.shape(part) for part in parts}
        shape = shapes.pop()
        if not shapes and shape is not None and len(shape) == 2 and len(parts) == 1 + max(by_number):
            outline = outline_like(state.outlines[parts[0]], (len(parts), *shape))
            yield Entry(merged, outline, partial(_stacked, state, parts), tuple(parts))


def counts_experts(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` describes a mixture of experts."""
    parts = (config, *(value for value in config.values() if isinstance(value, dict)))
    counts = [part.get(key) for part in parts if "model_type" in part for key in EXPERT_COUNTS]
    return any(isinstance(count, int) and count > 1 for count in counts)


def _stacked(state: State, parts: list[str]) -> Tensor:
    return torch.stack([state.read(part) for part in parts])
