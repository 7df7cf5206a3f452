"""Find the momentum of a weight in the state of its optimizer."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from esdmon.errors import UnreadableError
from esdmon.weights.layers.quantized import unpacker

_KEYS = ("exp_avg", "momentum_buffer")
"""Keys of the running mean of the gradients in an optimizer's state: of Adam and its kind; of SGD and Muon."""
_OF_MEANS = ("momentum", "lars", "lion")
"""Names of optimizers of bitsandbytes whose only state is such a mean; the only state of others is a mean of
squares."""
_BLOCK = 256  # elements for which bitsandbytes keeps one scale


def find_momentum(optimizers: Sequence[Optimizer], weight: Tensor) -> Tensor:
    """Return the running mean of the gradients of a weight that one of these optimizers keeps, as ordinary numbers.

    Raises:
        UnreadableError: if there is none, or it has another shape than the weight.
    """
    reasons = []
    for optimizer in optimizers:
        state = optimizer.state.get(weight, {})
        momenta = {key: state[key] for key in _KEYS if isinstance(state.get(key), Tensor)} or _of_bits(optimizer, state)
        for key, momentum in momenta.items():
            if momentum.shape == weight.shape:
                unpack = unpacker(momentum)  # optimizers of torchao hold it in 4 or 8 bits
                return momentum if unpack is None else unpack(momentum)
            reasons.append(
                f"the optimizer's {key} has the shape {_shape(momentum)}, and the weight {_shape(weight)}, as where "
                "GaLore keeps it of a projected gradient; '*/update' can be read"
            )
        others = [key for key, value in state.items() if isinstance(value, Tensor) and value.ndim]
        if others and not momenta:
            reasons.append(
                f"the optimizer's state of it has {', '.join(others)}, of which none is known to be a momentum; "
                "'*/update' can be read"
            )
    reasons.append(f"the optimizer holds no momentum of it, neither {' nor '.join(_KEYS)}")
    raise UnreadableError("skipped", reasons[0])


def _of_bits(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the momentum in the state of an optimizer of bitsandbytes, whose numbers may be packed in 8 bits."""
    mean = state.get("state1")
    if mean is None or not ("state2" in state or getattr(optimizer, "optimizer_name", "") in _OF_MEANS):
        return {}
    scales = state.get("absmax1")
    if scales is not None and scales.ndim > 1:  # AdEMAMix has a fast and a slow mean
        scales = scales[0]
    if getattr(optimizer, "optimizer_name", "") == "ademamix":
        mean = mean[0]
    if mean.is_floating_point():
        return {"state1": mean}
    if scales is None or scales.numel() != -(-mean.numel() // _BLOCK):
        return {}
    unpack = import_module("bitsandbytes.functional").dequantize_blockwise
    return {"state1": unpack(mean, absmax=scales, code=state["qmap1"], blocksize=_BLOCK)}


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape))
