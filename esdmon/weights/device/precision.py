"""Choose float32 or float64 for each computation, and avoid TF32, bfloat16 products and autocast.

torch has two sets of switches for float32 products: `set_float32_matmul_precision` with `allow_tf32`, and since 2.9
`fp32_precision` of each backend. Reading the old ones raises once the new ones were used, so the new ones are read
where they exist, those of the backend that multiplies on the device: mkldnn on a CPU, cuBLAS on CUDA. No switch is
changed here, since they belong to the user, and other threads may multiply at the same time.

Where a switch may round float32 products they are computed in float64. Products of 16-bit numbers are exact where the
switch leaves as many significant bits as the numbers have: bfloat16 has 8, float16 and TF32 11. The sums are still
rounded. On a CPU they are computed in float32: this is the default of oneDNN
(https://oneapi-src.github.io/oneDNN/dev_guide_attributes_accumulation_mode.html), and what `python -m
tests.benchmarks.precision_switches` shows. On CUDA they are assumed to be less accurate; this was not measured.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from esdmon.errors import InputError
from esdmon.weights import torch_private
from esdmon.weights.device.cuda import uses_cuda
from esdmon.weights.matrix import Matrix
from esdmon.weights.validation import check_readable

PRECISIONS = ("auto", "exact")
_MATMUL_PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}  # the older names of the newer settings
_EXACT_SETTINGS = ("ieee", "none")
_BITS_LEFT = {"tf32": 11, "bf16": 8}  # significant bits of a float32 number that a setting leaves
_BITS_OF = {torch.bfloat16: 8, torch.float16: 11}  # of the numbers themselves; of all others 24
_DEVICES_WITH_FLOAT64 = ("cpu", "cuda")


def check_precision(precision: str) -> str:
    """Return a valid value of `precision=`.

    `auto` computes in float32 where no result depends on the difference, and else in float64; `exact` always in
    float64.

    Raises:
        InputError: for any other value.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision= must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    return precision


def rounds_products(device_type: str, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether float32 products on a device may be rounded to fewer bits; True where torch does not say.

    Args:
        device_type: of the device that multiplies.
        dtype: type of the numbers before they are converted to float32, if both factors have it.
    """
    with suppress(Exception):  # a version of torch with other switches: float64 is always right
        setting = _product_setting(device_type)
        if device_type == "cpu" and setting not in _EXACT_SETTINGS:
            # TF32 needs special instructions; without them the switch, which CUDA shares, has no effect.
            has_effect = setting != "tf32" or torch_private.cpu_multiplies_in_tf32()
            return has_effect and _BITS_OF.get(dtype, 24) > _BITS_LEFT[setting]
        return device_type not in _DEVICES_WITH_FLOAT64 or setting not in _EXACT_SETTINGS
    return True


def _product_setting(device_type: str) -> str:
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    setting: str | None = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    return _MATMUL_PRECISIONS[torch.get_float32_matmul_precision()] if setting is None else setting


def read_weight(matrix: Matrix) -> Tensor:
    """Return the current weight, detached; one that is computed from parameters is computed in full precision.

    Raises:
        UnreadableError: for a weight that holds no numbers; see `check_readable`.
    """
    with torch.no_grad(), _full_precision():
        weight = matrix.read().detach()
    check_readable(weight)
    return weight


def on_float64_device(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or a copy on the CPU where its device, such as MPS, has no float64."""
    return tensor if tensor.device.type in (*_DEVICES_WITH_FLOAT64, "meta") else tensor.cpu()


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which `torch.autocast` is off.

    It does nothing where autocast is off already: leaving autocast empties a cache of the whole process, also that of
    a forward pass in another thread, and its results then differ in their last bits.
    """
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@contextmanager
def _full_precision() -> Iterator[None]:
    device_types = _DEVICES_WITH_FLOAT64 if uses_cuda() else ("cpu",)
    products: AbstractContextManager[object] = nullcontext()
    if any(rounds_products(device_type) for device_type in device_types):
        products = _ProductsInFloat64()  # type: ignore[no-untyped-call]
    with without_autocast("cpu"), without_autocast("cuda"), products:
        yield


_PRODUCTS = {
    *("mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear", "convolution"),
    *("linalg_matrix_exp", "linalg_householder_product", "_trilinear"),
}


class _ProductsInFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Compute float32 products of this thread in float64, without changing any switch."""

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_product(func) or not _are_plain_float32(args):
            return func(*args, **kwargs)
        wide = (arg.double() if isinstance(arg, Tensor) else arg for arg in args)
        return func(*wide, **kwargs).float()


def _is_product(operator: Any) -> bool:
    schema = torch_private.operator_schema(operator)
    return not schema.is_mutable and schema.name.partition("::")[2] in _PRODUCTS


def _are_plain_float32(args: tuple[Any, ...]) -> bool:
    return all(
        type(arg) in (Tensor, nn.Parameter) and arg.dtype == torch.float32 and arg.device.type in _DEVICES_WITH_FLOAT64
        for arg in args
        if isinstance(arg, Tensor)
    )
