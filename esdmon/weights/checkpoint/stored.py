"""Describe the tensors in a pickle of torch, and read each from the storages beside the pickle.

A tensor is a view of a storage: an offset, a shape and strides. The functions in `BUILDERS` take the arguments of
torch's own rebuilding functions, and return descriptions; nothing is read before `StoredTensor.load`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.weights.checkpoint.pickled import Builders, Call, Global, PickleError, everything

_DTYPES: dict[str, torch.dtype] = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "bool"),
        *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "qint8", "quint8", "qint32"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    )
    if hasattr(torch, name)
}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "Untyped": torch.uint8,
}
_PLAIN_DTYPES = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
_SHARDED = (".DTensor", ".ShardedTensor")
_PART = (
    "the part of one rank: save the whole with torch.distributed.checkpoint, or gather it first, with "
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
)
_SPARSE = {"sparse_coo": torch.sparse_coo, "sparse_csr": torch.sparse_csr, "sparse_csc": torch.sparse_csc}
ReadBytes = Callable[[str, int, int], bytearray | memoryview]
"""`(key of a storage, first byte, count)` to bytes."""
_LARGEST_EXPANSION = 1 << 26  # elements of a tensor that repeats those of its storage; our choice


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers beside the pickle."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0
    """Its first element in the block of that key."""


@dataclass(frozen=True, slots=True)
class TensorDescription:
    """A tensor in a file that is not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def outline(self) -> Tensor:
        """Return a tensor on the meta device of its shape and dtype."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class StoredTensor(TensorDescription):
    """A tensor that is a view of a storage."""

    storage: Storage
    offset: int
    stride: tuple[int, ...]
    quantizer: tuple[Any, ...] = ()
    """For torch's own quantisation: (scheme, scale, zero point), or the same with tensors and an axis."""

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def outline(self) -> Tensor:
        """Return a tensor on the meta device of its shape and dtype; for a quantised one, those of its real numbers."""
        return torch.empty(self.shape, dtype=torch.float32 if self.quantizer else self.dtype, device="meta")

    def load(self, read_bytes: ReadBytes) -> Tensor:
        """Return the tensor.

        Args:
            read_bytes: `(key of a storage, first byte, count)` to bytes.
        """
        if self.numel == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        plain = _PLAIN_DTYPES.get(self.dtype, self.dtype)
        extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        first = (self.storage.start + self.offset) * plain.itemsize
        numbers = torch.frombuffer(read_bytes(self.storage.key, first, extent * plain.itemsize), dtype=plain)
        tensor = numbers.as_strided(self.shape, self.stride)
        return _dequantized(tensor, self.quantizer, read_bytes) if self.quantizer else tensor


@dataclass(frozen=True, slots=True)
class Unsupported(TensorDescription):
    """A tensor of an unsupported kind."""

    reason: str
    layout: torch.layout = torch.strided

    def outline(self) -> Tensor:
        """Return a tensor on the meta device of its shape, dtype and layout."""
        return torch.empty(self.shape, dtype=self.dtype, layout=self.layout, device="meta")

    def load(self, _read_bytes: ReadBytes) -> Tensor:
        """Raise the reason.

        Raises:
            UnreadableError: always.
        """
        raise UnreadableError("skipped", self.reason)


AnyStored = StoredTensor | Unsupported


def is_tensor(value: object) -> TypeGuard[TensorDescription]:
    """Return whether a value in the content of a file is a tensor."""
    return isinstance(value, TensorDescription)


def storage_of(kind: Any, key: Any, numel: Any, *, start: int = 0) -> Storage:
    """Return the storage for a persistent id of torch, such as `torch.FloatStorage` of 12 elements."""
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    dtype = _STORAGES.get(name.removesuffix("Storage"))
    if dtype is None or not _is_count(numel) or not isinstance(key, str | int):
        msg = f"it names a storage of an unknown kind, {str(name)[:60]!r}"
        raise PickleError(msg)
    return Storage(str(key), dtype, numel, start)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def tensor_of(
    storage: Any, offset: Any, shape: Any, stride: Any, *, dtype: torch.dtype | None = None, quantizer: Any = ()
) -> StoredTensor:
    """Return a tensor that is a view of a storage.

    Args:
        storage: where its numbers are.
        offset: first element there.
        shape: sides.
        stride: steps in elements, for each side.
        dtype: type of its elements; None if it is that of the storage.
        quantizer: see `StoredTensor`.

    Raises:
        PickleError: for values that are none of these, and for a tensor that is larger than its storage.
    """
    if not isinstance(storage, Storage) or not isinstance(shape, Sequence) or not isinstance(stride, Sequence):
        raise PickleError("a tensor in it has no storage or shape")
    if len(shape) != len(stride) or not all(_is_count(number) for number in (offset, *shape, *stride)):
        raise PickleError("a tensor in it has an impossible shape")
    numbers = StoredTensor(tuple(shape), dtype or storage.dtype, storage, offset, tuple(stride), tuple(quantizer))
    held = storage.numel * storage.dtype.itemsize // numbers.dtype.itemsize
    extent = offset + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if numbers.numel and (extent > held or numbers.numel > max(held, _LARGEST_EXPANSION)):
        raise PickleError("a tensor in it is larger than its storage")
    return numbers


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
    return tensor_of(storage, offset, shape, stride)


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
    return tensor_of(storage, offset, shape, stride, dtype=dtype_of(dtype))


def _quantized(storage: Any, offset: Any, shape: Any, stride: Any, quantizer: Any, *_: Any) -> Any:
    return tensor_of(storage, offset, shape, stride, quantizer=quantizer)


def dtype_of(value: Any) -> torch.dtype:
    """Return the dtype that a global names.

    Raises:
        PickleError: for anything else.
    """
    if isinstance(value, Global) and value.name in _DTYPES:
        return _DTYPES[value.name]
    msg = f"it names an unknown dtype, {str(getattr(value, 'name', type(value).__name__))[:60]!r}"
    raise PickleError(msg)


def _sparse(layout: Any, data: Any, *_: Any) -> Any:
    kind = (layout if isinstance(layout, str) else "sparse_coo").removeprefix("torch.")
    tensors = [value for value in data if isinstance(value, StoredTensor)]
    shapes = [value for value in data if isinstance(value, tuple) and all(_is_count(side) for side in value)]
    if not tensors or not shapes:
        raise PickleError("a sparse tensor in it has no shape")
    reason = f"a {kind} tensor: convert it to an ordinary one, with to_dense()"
    return Unsupported(shapes[-1], tensors[-1].dtype, reason, _SPARSE.get(kind, torch.sparse_coo))


def _nested(buffer: Any, *_: Any) -> Any:
    return Unsupported(buffer.shape, buffer.dtype, "a nested tensor: convert it to an ordinary one, with to_dense()")


def unsupported(reason: str, shape: Any, dtype: torch.dtype | None) -> Unsupported:
    """Return a description of a tensor of an unsupported kind.

    Args:
        reason: why it is not read.
        shape: sides.
        dtype: type of the elements; None if it is not known.

    Raises:
        PickleError: for an impossible shape.
    """
    if not all(_is_count(side) for side in shape):
        raise PickleError("a tensor in it has an impossible shape")
    return Unsupported(tuple(shape), dtype or torch.uint8, reason)


def _meta(dtype: Any, shape: Any, *_: Any) -> Any:
    return unsupported("on the meta device, which holds no numbers: load the weights first", shape, dtype_of(dtype))


def _subclass(kind: Any, arguments: Any, state: Any) -> Any:
    """Return the tensors that a wrapper around tensors holds, by attribute: torchao's `qdata` and `scale`."""
    if isinstance(kind, Global) and kind.name.endswith(_SHARDED):
        return _of_rank(arguments, state)
    inside = state[0] if isinstance(state, tuple) and state else state
    return dict(inside) if isinstance(inside, dict) else Call("torch.Tensor", (), state)


def _of_rank(arguments: Any, state: Any) -> StoredTensor | Unsupported:
    """Return a rank's part of a sharded tensor if it is the whole tensor, else an unsupported tensor."""
    _, dtype, shape, *_ = arguments
    whole = unsupported(_PART, shape, dtype_of(dtype))
    inside = [*everything([state])]
    if any(isinstance(value, Call) and value.name.endswith(".Partial") for value in inside):  # one term of a sum
        return whole
    tensors = (value for value in inside if isinstance(value, StoredTensor))
    return next((each for each in tensors if (each.dtype, each.shape) == (whole.dtype, whole.shape)), whole)


def _from_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Return the tensor inside a tensor of another class, or the tensors that it is made of."""
    name = rebuild.name if isinstance(rebuild, Global) else ""
    if name == "torch._utils._rebuild_wrapper_subclass":
        return _subclass(kind, arguments, state)
    build = BUILDERS.get(name)
    return Call(name, tuple(arguments), state) if build is None else build(*arguments)


def _mapping(*arguments: Any) -> dict[Any, Any]:
    pairs = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
    return {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], str | int)}


BUILDERS: Builders = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "torch.Size": tuple,
    "torch.serialization._get_layout": lambda name: name,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
"""Functions that convert the calls in a file of `torch.save`."""


def _dequantized(numbers: Tensor, quantizer: tuple[Any, ...], read_bytes: ReadBytes) -> Tensor:
    """Return (q − zero point)·scale, of one scale for the tensor, or one for each row along an axis."""
    _, scale, zero_point, *axis = quantizer
    if not axis:
        return (numbers.float() - float(zero_point)) * float(scale)
    shape = [1] * numbers.ndim
    shape[axis[0]] = -1
    scales: Tensor = scale.load(read_bytes).float().reshape(shape)
    zeros: Tensor = zero_point.load(read_bytes).float().reshape(shape)
    return (numbers.float() - zeros) * scales


def outlines_of(tensors: Mapping[str, AnyStored]) -> dict[str, Tensor]:
    """Return outlines of tensors; names of one tensor get one outline."""
    by_tensor: dict[object, Tensor] = {}
    return {name: by_tensor.setdefault(_identity(tensor), tensor.outline()) for name, tensor in tensors.items()}


def _identity(tensor: AnyStored) -> object:
    if isinstance(tensor, Unsupported) or tensor.numel == 0:
        return id(tensor)
    return tensor.storage.key, tensor.storage.start + tensor.offset, tensor.dtype, tensor.shape, tensor.stride
