"""Each private attribute of torch that weights are found by: what breaks where torch changes it."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

import esdmon
from esdmon.weights import torch_private
from esdmon.weights.outline import Outline
from esdmon.weights.shard import SHARDED
from esdmon.weights.shards import find_shards


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A job of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_children_of() -> None:
    """Else a shared child is found under one of its names only, and a tied weight loses its aliases."""
    shared = nn.Linear(2, 2)
    model = nn.Module()
    model.first, model.second = shared, shared
    model.register_module("absent", None)
    assert dict(torch_private.children_of(model)) == {"first": shared, "second": shared, "absent": None}


def test_parameters_of() -> None:
    """Else shards are not found, and fused projections are read as one matrix."""
    layer = nn.Linear(2, 2, bias=False)
    assert dict(torch_private.parameters_of(layer)) == {"weight": layer.weight, "bias": None}


def test_forward_pre_hooks() -> None:
    """Else weights that the older spectral_norm, weight_norm and pruning compute are read a step late."""
    (hook,) = torch_private.forward_pre_hooks(spectral_norm(nn.Linear(4, 4)))
    assert type(hook).__name__ == "SpectralNorm"


def test_pruned_attribute() -> None:
    """Else a pruned weight is read as it was before the last step."""
    layer = nn.Linear(4, 4)
    method: Any = prune.random_unstructured
    method(layer, "weight", amount=0.5)
    assert [torch_private.pruned_attribute(hook) for hook in torch_private.forward_pre_hooks(layer)] == ["weight"]


def test_recurrent_attributes() -> None:
    """Else recurrent layers are not read."""
    names = torch_private.recurrent_attributes(nn.LSTM(3, 4, bias=False, proj_size=2))
    assert names == ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]


def test_cpu_multiplies_in_tf32() -> None:
    """Else every reading on a CPU is in float64 once TF32 is allowed for CUDA: right, and slower."""
    assert torch_private.cpu_multiplies_in_tf32() in (True, False)


def test_operator_schema() -> None:
    """Else weights that are computed by products raise instead of being computed in full precision."""
    seen = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        """Collects the operators that are called."""

        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(torch_private.operator_schema(func))
            return func(*args, **kwargs or {})

    with Watch():  # type: ignore[no-untyped-call]
        torch.ones(2, 2).mm(torch.ones(2, 2)).add_(1)
    mutable = {schema.name: schema.is_mutable for schema in seen}
    assert mutable["aten::mm"] is False
    assert mutable["aten::add_"] is True


def tied_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    return model


def names_of(model: nn.Module, managed: torch_private.ManagedParameter) -> list[str]:
    paths = {id(module): name for name, module in model.named_modules()}
    return [f"{paths[id(module)]}.{attribute}" for module, attribute in managed.owners]


@pytest.mark.usefixtures("group")
def test_fsdp2_parameters() -> None:
    """Else every weight below a wrapper counts as sharded, under the parameter that the module shows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tied_model()
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    managed = list(torch_private.fsdp2_parameters(model))
    assert [names_of(model, each) for each in managed] == [["0.weight", "1.weight"], ["2.weight"]]
    assert [id(each.parameter) for each in managed] == [id(model[0].weight), id(model[2].weight)]
    assert [tuple(each.shape) for each in managed] == [(4, 4), (6, 4)]
    assert len(find_shards(model)) == 3
    (layer, *_) = esdmon.analyze(dict(model.named_parameters()))
    assert (layer.status, layer.reason) == ("skipped", SHARDED)  # of a mapping, of which no rank knows the others


@pytest.mark.usefixtures("group")
def test_authors_class() -> None:
    """Else LoRA layers, and fused projections of transformers, are not recognised once they are sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Layer(nn.Linear):
        pass

    model = Layer(4, 4)
    assert torch_private.authors_class(model) is Layer
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert type(model) is not Layer
    assert torch_private.authors_class(model) is Layer


@pytest.mark.usefixtures("group")
def test_without_finalizer() -> None:
    """Else a search for weights shuts down DeepSpeed's engine, whose `__del__` takes the hooks off its parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Engine(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.freed: list[str] = []

        def __del__(self) -> None:
            self.freed.append("engine")

    engine = Engine(nn.Linear(4, 4))
    fully_shard(engine.module, mesh=init_device_mesh("cpu", (1,)))
    outline = Outline(engine, find_shards(engine))
    assert outline.model is not engine
    assert isinstance(outline.model, Engine)
    assert type(outline.model).__name__ == "Engine"
    del outline
    gc.collect()
    assert engine.freed == []


@pytest.mark.usefixtures("group")
def test_splits_of_dtensor() -> None:
    """Else DTensors are skipped, since which part a rank holds is not known."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    tensor = distribute_tensor(torch.ones(3, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
    assert torch_private.splits_of_dtensor(tensor) == ([(0, 1, 0, 1)], True)


class FlatHandle:
    """What a `FullyShardedDataParallel` on several ranks holds, with the attributes of its own classes."""

    uses_sharded_strategy = True

    def __init__(self, flat_param: Tensor) -> None:
        self.flat_param = flat_param


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore")  # torch's own, on a job of one rank without an accelerator
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_parameters(use_orig_params: bool) -> None:  # noqa: FBT001 -- a case
    """Else every weight below a wrapper counts as sharded, under the parameter that the module shows."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    inner = tied_model()
    model = FullyShardedDataParallel(inner, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    handle: Any = vars(model)["_handle"]
    assert not handle.uses_sharded_strategy  # one rank holds all
    managed = list(torch_private.fsdp1_parameters(model))
    assert [names_of(inner, each) for each in managed] == [["0.weight", "1.weight"], ["2.weight"]] * (
        not use_orig_params  # else the module shows its parameters
    )
    for each in managed:
        assert each.parameter is handle.flat_param
        assert each.read is not None
        assert torch.equal(each.read().view(each.shape), getattr(*each.owners[0]))
    vars(model)["_handle"] = FlatHandle(handle.flat_param)
    managed = list(torch_private.fsdp1_parameters(model))
    assert [names_of(inner, each) for each in managed] == [["0.weight", "1.weight"], ["2.weight"]]
    assert [tuple(each.shape) for each in managed] == [(4, 4), (6, 4)]
    assert [each.interval for each in managed] == [(0, 16), (0, 24)]
