"""Unpack the objects of torch's own quantisation, of linear and recurrent layers and cells.

Their tensors have no names, only places in the state of the object that packs them.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from esdmon.weights.state.entries import Entry, State, computed_entry

_LINEAR = re.compile(r"(?P<owner>.*?)_packed_params\._packed_params\.0")
_CELL = re.compile(r"(?P<owner>.*?)_packed_(?P<name>weight_[ih]h)\.0\.0")
_RECURRENT = re.compile(r"(?P<owner>.*?)_all_weight_values\.(?P<place>\d{1,4})\.param\.0\.4\.(?P<of>[01])\.0\.0")


def entries_packed_by_torch(state: State) -> Iterator[Entry]:
    """Iterate over the weights of quantised layers, under the names that they have in torch.nn."""
    recurrent: dict[str, dict[tuple[int, int], str]] = {}
    for name in state.outlines:
        if match := _LINEAR.fullmatch(name):
            yield _entry(state, f"{match['owner']}weight", name)
        elif match := _CELL.fullmatch(name):
            yield _entry(state, f"{match['owner']}{match['name']}", name)
        elif match := _RECURRENT.fullmatch(name):
            recurrent.setdefault(match["owner"], {})[int(match["place"]), int(match["of"])] = name
    for owner, places in recurrent.items():
        for (place, of), name in places.items():
            yield _entry(state, f"{owner}weight_{('ih', 'hh')[of]}_{_layer(state, places, place)}", name)


def _layer(state: State, places: Mapping[tuple[int, int], str], place: int) -> str:
    """Return `l0`, `l0_reverse` or `l1`: with two directions a layer has as many inputs as two have outputs.

    Two packed weights are ambiguous where the first has as many inputs as outputs: they are taken for two layers.
    """
    inputs = [shape[-1] for number in range(3) if (shape := state.shape(places.get((number, 0), "")))]
    hidden = (state.shape(places.get((0, 1), "")) or (0,))[-1]
    is_bidirectional = inputs[2] == 2 * hidden if len(inputs) > 2 else inputs[1:] == inputs[:1] != [hidden]
    if not is_bidirectional:
        return f"l{place}"
    return f"l{place // 2}" + "_reverse" * (place % 2)


def _entry(state: State, name: str, packed: str) -> Entry:
    return computed_entry(state, name, (packed,), _unpack)


def _unpack(weight: Tensor) -> Tensor:
    return weight.dequantize() if weight.is_quantized else weight
