"""Recognise tensors that are not weight matrices, by name, shape, dtype and neighbours, in modules and files alike.

A module distinguishes parameters from buffers, and knows its layers. For a file only names and shapes are known, so a
causal mask of 1 × 1 × 1024 × 1024 numbers looks like a convolution. Tensors that are left out here are listed in the
coverage, with the reason.
"""

import re
from collections.abc import Container

import torch
from torch import Tensor

SCALES = "scales, as of a norm"
"""Reason for omitting a weight with one number for each of its inputs, of any shape."""
NESTED = "nested tensors, whose parts differ in size"
"""Reason for omitting a nested tensor. Reading its shape may raise, as most other calls."""
MATRIX_DIMENSIONS = range(2, 6)
"""Dimensions of weights that may be matrices, experts or convolutions."""
_WORDS = {
    "biases": {"bias", "biases"},
    "masks": {"mask", "masks", "tril", "triu", "causal"},
    "tables of constants": {
        "table",
        "grid",
        "index",
        "indices",
        "ids",
        "anchors",
        "freqs",
        "freq",
        "cos",
        "sin",
        "pe",
        "hadamard",
    },
    "tokens": {"token", "tokens"},
    "running statistics": {"running"},
    "logarithms of a diagonal": {"log"},
    "magnitudes": {"dora", "magnitude"},
    "counters and caches": {"cache", "cached", "queue", "num"},
}
_PACKING = {
    *("scales", "scale", "zeros", "qzeros", "zp", "SCB", "absmax", "g_idx", "weight_scale", "weight_scale_inv", "s"),
    *("wscales", "wzeros", "scaled_zeros", "weight_scales", "weight_zero_point", "zero_point", "zero", "_scale"),
    *("_shift", "scale_weight", "scale_packed", "input_scale", "nested_absmax", "quant_map"),
}
_OTHER_ADAPTERS = re.compile(
    r"\.(hada_[wt]|lokr_[wt]|oft_|boft_[Rs]|vera_(A|B|lambda)|ia3_l|on_input|hra_u|miss_block|vblora_|randlora_|fourierft_"
    r"|waveft_|shira_|c3a_kernel|trainable_tokens_delta|poly_(lora|router)|lora_E|gralora_|glora_|hira_[AB]|hira_embedding"
    r"|delora_|deft_[PR]|frod_|peanut_|psoft_R|osf_svd|adamss_|supertuning_|lily_[ABr]|tinylora_|unilora_|beft_)"
)
"""Names that the tuners of peft and the scripts of kohya give to what they train, and keep beside it."""
_GLORA = {"a1", "a2", "b1", "b2"}
"""Layers that LyCORIS's GLoRA has for one layer of the model, beside its `alpha`."""
_CONSTANTS = {"fb", "mel_basis", "mel_fb", "mel_filters", "forward_basis", "inverse_basis"}
"""Filters of mel scales and Fourier transforms, which modules of audio keep in buffers."""
_CODEBOOKS = {"centroids", "res_centroids", "outlier_centroids"}
"""Names in VPTQ, beside the `indices` of a layer."""
_NORM = re.compile(r"(^|_|layer)(norm|ln|gn|bn)\d*$", re.IGNORECASE)
"""Names of norms, whose scales have two or more sides where they normalise over positions as well."""
_WITHOUT_DOTS = re.compile(r"model_ema\.[^.]+")
"""Names in the averaged copy of latent diffusion, `LitEma`, which takes the dots out of those of the model."""
_PACKED = ("weight", "qweight", "weight_packed", "W_q", "_data", "_data._data", "B", "compressed")
_INTEGERS = (torch.bool, torch.int64, torch.int32, torch.int16, torch.uint64, torch.uint32, torch.uint16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Types of 8 bits whose numbers are used directly if there is no scale beside them."""


def why_not_a_weight(  # noqa: PLR0911 -- one for each reason
    name: str, tensor: Tensor, beside: Container[str] = ()
) -> str:
    """Return the reason why a tensor is not a weight matrix; empty if it may be one.

    Args:
        name: name of the parameter, with its path.
        tensor: the parameter, or its outline.
        beside: all names of the state dict.
    """
    if tensor.is_nested:
        return NESTED
    path, _, last = name.rpartition(".")
    if tensor.dim() not in MATRIX_DIMENSIONS:
        return "vectors" if tensor.dim() < 2 else of_unknown_layout(tensor)
    if tensor.dim() > 3 and tensor.numel() == tensor.shape[-1]:
        return "vectors"  # (1, 1, 1, channels), as the scale of ConvNeXt V2's norm
    reason = _why_no_layer(path, beside) if last == "weight" else _why_by_name(path, last, beside)
    if reason:
        return reason
    if _WITHOUT_DOTS.fullmatch(name):
        return "an averaged copy, under names without dots"
    if _OTHER_ADAPTERS.search(f".{name}") or (last == "weight" and _is_of_glora(path, beside)):
        return "factors of an adapter other than LoRA"
    if last != "weight" and _is_vector(tensor):
        return "vectors"
    return "integers" if tensor.dtype in _INTEGERS and last not in _PACKED[1:] else ""


def of_unknown_layout(tensor: Tensor) -> str:
    """Return the reason for a parameter whose matrices are not known."""
    return f"{tensor.dim()}-D parameters of unknown layout, which a plugin can read"


def _is_of_glora(path: str, beside: Container[str]) -> bool:
    owner, _, own = path.rpartition(".")
    needed = (_beside(owner, "alpha"), *(_beside(owner, f"{each}.weight") for each in _GLORA))
    return own in _GLORA and all(name in beside for name in needed)


def _is_vector(tensor: Tensor) -> bool:
    """Return whether a tensor of several sides has a number for each channel, as (1, channels, 1)."""
    return tensor.dim() > 2 and tensor.numel() == max(tensor.shape)


def _why_no_layer(path: str, beside: Container[str]) -> str:
    """Return the reason why a parameter named `weight` does not belong to a layer."""
    owner, _, own = path.rpartition(".")
    if _NORM.search(own):
        return SCALES
    return "codebooks of packed weights" if own in _CODEBOOKS and _beside(owner, "indices") in beside else ""


def _why_by_name(path: str, last: str, beside: Container[str]) -> str:
    words = set(re.split(r"[_\d/]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last).lower()))
    reason = next((why for why, known in _WORDS.items() if not words.isdisjoint(known)), "")
    if reason:
        return reason
    if last in _CONSTANTS:
        return "tables of constants"
    if last.endswith("_integer") and _beside(path, last.removesuffix("_integer")) in beside:
        return "integers beside the weight that they stand for"
    if last in _PACKING and any(_beside(path, packed) in beside for packed in _PACKED):
        return "scales of packed weights"
    if last.endswith("_epsilon") and _beside(path, last.replace("_epsilon", "_sigma")) in beside:
        return "noise of a noisy layer"
    return ""


def _beside(path: str, last: str) -> str:
    return f"{path}.{last}" if path else last
