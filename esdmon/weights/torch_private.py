"""Wrap private parts of torch, one function for each; tests/test_torch_private.py and its sibling guard them.

A test of a function fails where a new version of torch has changed what it reads, and says what stops working then.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.optim import Optimizer
from torch.utils import _python_dispatch


def step_wrapper() -> CodeType | None:
    """Return the code of the wrapper that torch puts around the `step` of every optimizer class; None without one.

    It is not read off a class, since torch.compile wraps the step of some classes (LBFGS, SparseAdam) once more.
    """
    with suppress(Exception):
        return Optimizer.profile_hook_step(lambda _: None).__code__
    return None


def has_step_hooks(optimizer: object) -> TypeGuard[Optimizer]:
    """Return whether an optimizer has hooks of its own: its `__init__` was that of `torch.optim.Optimizer`.

    A wrapper that hands on all attributes, as Fabric's, seems to have those of the optimizer inside it.
    """
    return isinstance(optimizer, Optimizer) and "_optimizer_step_post_hooks" in vars(optimizer)


def version_of(tensor: Tensor | None) -> int:
    """Return how often torch has changed a tensor in place; 0 for a tensor that counts nothing, or None."""
    try:  # not `suppress`, which takes longer than all the rest: this is called at each step
        return 0 if tensor is None else tensor._version  # noqa: SLF001
    except (RuntimeError, AttributeError):  # a tensor that was made in inference mode counts nothing
        return 0


def drop_empty_gradient_hooks(tensor: Tensor) -> None:
    """Remove the empty dictionary that torch leaves on a tensor after its last gradient hook was removed."""
    if getattr(tensor, "_post_accumulate_grad_hooks", None) == {}:
        tensor._post_accumulate_grad_hooks = None  # type: ignore[assignment]  # noqa: SLF001


@contextmanager
def outside_dispatch_modes() -> Iterator[None]:
    """Leave the host's `TorchDispatchMode`s, such as `FlopCounterMode`, which would count what esdmon computes."""
    if _python_dispatch._get_current_dispatch_mode_stack():  # noqa: SLF001
        with _python_dispatch._disable_current_modes():  # noqa: SLF001
            yield
    else:
        yield


def is_in_backward() -> bool:
    """Return whether the calling thread is inside a backward pass."""
    current = getattr(torch._C, "_current_graph_task_id", None)  # noqa: SLF001
    return current is not None and current() != -1


def use_one_thread() -> None:
    """Have torch compute in one thread where this thread calls it, and leave other threads unchanged.

    `torch.set_num_threads(1)` sets the number for threads that have not computed yet too. Does nothing where torch was
    built with other libraries than OpenMP of GNU or Intel, and MKL.
    """
    torch.get_num_threads()  # a thread takes over what `torch.set_num_threads` was given at its first call of torch
    folder = Path(torch.__file__).parent / "lib"
    for path in (*folder.glob("libgomp*"), *folder.glob("libiomp5*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(path)).omp_set_num_threads(1)
    for path in folder.glob("libtorch_cpu.*"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(path)).MKL_Set_Num_Threads_Local(1)


def job_store(prefix: str) -> Any:
    """Return the key-value store of the default process group, with `prefix/` before each key."""
    from torch.distributed import distributed_c10d as c10d  # noqa: PLC0415 -- some builds of torch have none

    return c10d.PrefixStore(prefix, c10d._get_default_store())  # noqa: SLF001


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return the children of a module by attribute. `named_children()` leaves out the second name of a shared child."""
    return dict(module._modules.items())  # noqa: SLF001 -- that of a scripted module is not a dictionary


def parameters_of(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return a module's own parameters by attribute. `named_parameters()` may run code of the module's author."""
    return dict(module._parameters.items())  # noqa: SLF001 -- as of `children_of`


def forward_pre_hooks(module: nn.Module) -> tuple[Any, ...]:
    """Return the hooks that run before a module's `forward`."""
    return tuple(module._forward_pre_hooks.values())  # noqa: SLF001


def recurrent_attributes(module: nn.RNNBase) -> list[str]:
    """Return the attributes that hold the weights and biases of a recurrent layer, also under `weight_norm`."""
    return module._flat_weights_names  # noqa: SLF001


def pruned_attribute(hook: BasePruningMethod) -> str:
    """Return the attribute that a pruning hook computes."""
    method: Any = hook  # torch sets the attribute on each instance, and declares it nowhere
    name: str = method._tensor_name  # noqa: SLF001
    return name


def cpu_multiplies_in_tf32() -> bool:
    """Return whether this CPU has the instructions by which torch multiplies float32 in TF32."""
    return bool(torch.cpu._is_amx_fp16_supported())  # noqa: SLF001


def operator_schema(operator: Any) -> Any:
    """Return the schema of an operator that `__torch_dispatch__` gets: its name, and whether it mutates."""
    return operator._schema  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class ManagedParameter:
    """A weight that an FSDP wrapper manages."""

    owners: tuple[tuple[nn.Module, str], ...]
    """Module and attribute of each layer that uses it."""
    parameter: Tensor
    """The tensor that the optimizer holds; FSDP1 may flatten several weights into one."""
    shape: torch.Size
    """Shape of the whole weight."""
    interval: tuple[int, int] | None = None
    """The elements of the flattened weight on this rank, first and last + 1; None for a DTensor."""
    read: Callable[[], Tensor] | None = None
    """Returns these elements."""


def fsdp2_parameters(module: nn.Module) -> Iterator[ManagedParameter]:
    """Iterate over the parameters that a module of FSDP2 (`fully_shard`) manages.

    Raises:
        AttributeError: with a version of torch that keeps them elsewhere.
    """
    fsdp: Any = module
    state = fsdp._get_fsdp_state()  # noqa: SLF001
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # older versions of torch have one group
        groups = [state._fsdp_param_group]  # noqa: SLF001
    for group in groups:
        for managed in () if group is None else group.fsdp_params:
            info = managed._module_info  # noqa: SLF001
            shared = zip(info.shared_modules, info.shared_param_names, strict=True)
            owners = ((info.module, info.param_name), *shared)
            parameter = _sharded(managed)
            yield ManagedParameter(owners, parameter, parameter.shape)


def _sharded(managed: Any) -> Any:
    """Return the sharded parameter, or the one that was assigned to the module since, which FSDP takes up later."""
    info = managed._module_info  # noqa: SLF001
    shown: Any = parameters_of(info.module).get(info.param_name)
    is_shown = getattr(managed.sharded_state, "name", "") == "SHARDED" and hasattr(shown, "placements")
    return shown if is_shown else managed.sharded_param


def authors_class(module: nn.Module) -> type[nn.Module]:
    """Return the class by which a layer is recognised: the one that `fully_shard` has replaced by `FSDP<class>`."""
    kind = type(module)
    first, *others = kind.__bases__
    is_made = others and any(base.__name__ == "FSDPModule" for base in first.__mro__)
    return others[0] if is_made else kind


@lru_cache(maxsize=1024)
def without_finalizer(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class like this one, without its finalizer: for objects that share what `__del__` would free.

    DeepSpeed's engine takes the hooks off its parameters there.
    """
    if not hasattr(kind, "__del__"):
        return kind
    names = {"__del__": lambda _: None, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    make: Any = type(kind)
    made: type[nn.Module] = make(kind.__name__, (kind,), names)
    return made


def fsdp1_parameters(module: nn.Module) -> Iterator[ManagedParameter]:
    """Iterate over the parameters that a `FullyShardedDataParallel` (FSDP1) splits over ranks, or flattens on one.

    Raises:
        AttributeError: with a version of torch that keeps them elsewhere.
    """
    fsdp: Any = module
    handle = fsdp._handle  # noqa: SLF001
    if handle is None or not (handle.uses_sharded_strategy or handle.flat_param._params is None):  # noqa: SLF001
        return
    flat = handle.flat_param
    shared: dict[tuple[int, str], list[tuple[nn.Module, str]]] = {}
    for info in flat._shared_param_infos:  # noqa: SLF001
        owners = shared.setdefault((id(info.prim_module), info.prim_param_name), [])
        owners.append((info.module, info.param_name))
    for position, (info, shape) in enumerate(zip(flat._param_infos, flat._shapes, strict=True)):  # noqa: SLF001
        others = shared.get((id(info.module), info.param_name), ())
        parameter = flat if flat._params is None else flat._params[position]  # noqa: SLF001
        here = flat._shard_param_infos[position]  # noqa: SLF001
        interval, start, count = (0, 0), 0, 0
        if here.in_shard:
            interval = here.intra_param_start_idx, here.intra_param_end_idx + 1
            start, count = here.offset_in_shard, here.numel_in_shard
        read = partial(_local_elements, handle, start, count)
        yield ManagedParameter(((info.module, info.param_name), *others), parameter, torch.Size(shape), interval, read)


def _local_elements(handle: Any, start: int, count: int) -> Tensor:
    local: Tensor = handle.flat_param._local_shard if handle.uses_sharded_strategy else handle.flat_param  # noqa: SLF001
    return local.detach()[start : start + count]


def splits_of_dtensor(tensor: Any) -> tuple[list[tuple[int, int, int, int]], bool]:
    """Return how a DTensor is split, in order, and whether this rank holds a part of it.

    Each split is the side, the number of ranks, this rank's place among them, and the blocks of the side that are split
    one by one, as by `_StridedShard`.
    """
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    splits = [
        (placement.dim, mesh.size(axis), 0 if coordinate is None else coordinate[axis], _blocks(placement))
        for axis, placement in enumerate(tensor.placements)
        if hasattr(placement, "dim")
    ]
    return splits, coordinate is not None


def _blocks(placement: Any) -> int:
    return int(getattr(placement, "split_factor", 1))
