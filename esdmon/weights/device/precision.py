"""Computing in full precision whatever the user has allowed for speed: TF32, bfloat16 products, autocast.

torch has two sets of switches for float32 products, `set_float32_matmul_precision` and `allow_tf32`, and since 2.9
`fp32_precision` of each backend. Asking the old ones raises once the new ones were used, so the new ones are asked
where they exist, those of the backend that multiplies on the device: mkldnn on a CPU, cuBLAS on CUDA. No switch is ever
set here: they are the user's, and other threads may multiply meanwhile.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from esdmon.weights.matrix import Matrix

_LEGACY = {"highest": "ieee", "high": "tf32", "medium": "bf16"}
_EXACT = ("ieee", "none")
_WITH_DOUBLE = ("cpu", "cuda")


def rounds_products(device_type: str) -> bool:
    """Return whether float32 products on a device may be rounded to fewer bits; True where that cannot be told."""
    with suppress(Exception):  # another torch, other switches: float64 is always right
        setting = _setting(device_type)
        # On a CPU TF32 needs these instructions; without them the switch, which CUDA shares, does nothing.
        if device_type == "cpu" and setting == "tf32":
            return bool(torch.cpu._is_amx_fp16_supported())  # noqa: SLF001 -- there is no public way to ask
        return device_type not in _WITH_DOUBLE or setting not in _EXACT
    return True


def _setting(device_type: str) -> str:
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    setting: str | None = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    return _LEGACY[torch.get_float32_matmul_precision()] if setting is None else setting


def weight_now(matrix: Matrix) -> Tensor:
    """Return the weight as it is now; one that is computed, as a parametrisation is, in full precision."""
    with torch.no_grad(), _full_precision():
        weight = matrix.read()
    return weight.detach()


def with_double(tensor: Tensor) -> Tensor:
    """Return the tensor on a device that has float64: a copy on the CPU where its own, such as MPS, has none."""
    return tensor if tensor.device.type in (*_WITH_DOUBLE, "meta") else tensor.cpu()


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which `torch.autocast` is off.

    Nothing is entered where nothing is to be left: leaving autocast empties a cache of the whole process, also that of
    a forward pass which goes on in another thread meanwhile, whose results then differ in their last bits.
    """
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@contextmanager
def _full_precision() -> Iterator[None]:
    kinds = _WITH_DOUBLE if torch.cuda.is_available() else ("cpu",)
    widened = any(map(rounds_products, kinds))
    with without_autocast("cpu"), without_autocast("cuda"), _widened() if widened else nullcontext():
        yield


def _widened() -> AbstractContextManager[object]:
    mode: AbstractContextManager[object] = _Widened()  # type: ignore[no-untyped-call]
    return mode


_PRODUCTS = {
    *("mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear", "convolution"),
    *("linalg_matrix_exp", "linalg_householder_product", "_trilinear"),
}


class _Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Multiply float32 in float64 in this thread, and leave the switches alone."""

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema = func._schema  # noqa: SLF001 -- there is no public way to the name
        of = [arg for arg in args if isinstance(arg, Tensor)]
        if schema.is_mutable or schema.name.partition("::")[2] not in _PRODUCTS or not all(map(_is_plain_float32, of)):
            return func(*args, **kwargs or {})
        wide = (arg.double() if isinstance(arg, Tensor) else arg for arg in args)
        return func(*wide, **kwargs or {}).float()


def _is_plain_float32(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type in _WITH_DOUBLE
    )
