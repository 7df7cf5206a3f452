"""Models that are spread over the ranks of a job in every way that is read, and the same models in one piece."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import functional

CPU = torch.device("cpu")


class Experts(nn.Module):
    """Three experts in one parameter, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.down_proj = nn.Parameter(torch.randn(3, 23, 24) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eij->bj", x, self.down_proj)


class Mixed(nn.Module):
    """What is more than one plain matrix: fused q, k and v, a convolution, experts, a tied weight; odd sizes."""

    layers: ClassVar = ["*", "*/qk", "*/ov"]  # products of one parameter, and of two

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)  # five rows: on four ranks the last has none
        self.attention = nn.MultiheadAttention(23, 1, bias=False, batch_first=True)
        self.first = nn.Linear(45, 23, bias=False)
        self.tied = nn.Linear(23, 23, bias=False)
        self.again = nn.Linear(23, 23, bias=False)
        self.again.weight = self.tied.weight
        self.experts = Experts()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.tanh(self.conv(x)).flatten(1))
        x = self.again(torch.tanh(self.tied(x)))
        x, _ = self.attention(x[:, None], x[:, None], x[:, None], need_weights=False)
        out: Tensor = self.experts(x[:, 0])
        return out

    def batch(self, generator: torch.Generator) -> Tensor:
        return torch.randn(4, 3, 5, 5, generator=generator)


class Layers(nn.Sequential):
    """Two linear layers that tensor parallelism splits, and one that it leaves."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(24, 98), nn.Tanh(), nn.Linear(98, 60), nn.Tanh(), nn.Linear(60, 23))

    def batch(self, generator: torch.Generator) -> Tensor:
        return torch.randn(4, 24, generator=generator)


class Halved(nn.Module):
    """Layers that gather their weights, of which a rank may hold a part of each half."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 96, bias=False)
        self.second = nn.Linear(96, 60, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            weight: Any = layer.weight
            x = torch.tanh(functional.linear(x, weight.full_tensor() if isinstance(weight, DTensor) else weight))
        return x

    batch = Layers.batch


class Adapted(Layers):
    """Layers with LoRA adapters of peft: base, adapter and their sum are read."""

    layers: ClassVar = ["*", "*/merged"]

    def __init__(self) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        config = LoraConfig(r=12, target_modules=["0", "2"], init_lora_weights=False)
        inject_adapter_in_model(config, self)


class Adaptive(Layers):
    """The same with AdaLoRA, whose factors and rank are in dictionaries of parameters."""

    def __init__(self) -> None:
        from peft import AdaLoraConfig, inject_adapter_in_model

        super().__init__()
        config = AdaLoraConfig(init_r=12, total_step=9, target_modules=["0", "2"], init_lora_weights=False)
        inject_adapter_in_model(config, self)


class Packed(Layers):
    """Adapters on bases of 4 bits, packed in float32 as FSDP needs them; the layers have the scales."""

    def __init__(self) -> None:
        from bitsandbytes.nn import Linear4bit, Params4bit
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        for place in (0, 2):
            plain = self[place]
            layer = Linear4bit(plain.in_features, plain.out_features, quant_storage=torch.float32)
            layer.weight = Params4bit(plain.weight.data, requires_grad=False, quant_storage=torch.float32, module=layer)
            layer.bias = plain.bias
            self[place] = layer.to("cpu")  # packs it
        config = LoraConfig(r=12, target_modules=["0", "2"], init_lora_weights=False)
        inject_adapter_in_model(config, self)

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:  # noqa: FBT001, FBT002 -- torch's
        """Load the parameters; the scales of the layers stay."""
        return super().load_state_dict(state_dict, strict, assign)


def fsdp2(model: Any, mesh: DeviceMesh | None = None, **options: Any) -> Any:
    for layer in (model.first, model.experts) if isinstance(model, Mixed) else (model[0], model[2]):
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def kept_whole(model: Any) -> Any:
    fsdp2(model).set_reshard_after_backward(False)
    return model


def fsdp1(model: nn.Module, **options: Any) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=CPU, **options)


def tensor_parallel(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    mesh = mesh or init_device_mesh("cpu", (distributed.get_world_size(),))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def adapters_in_parallel(model: nn.Module) -> nn.Module:
    """Bases that are split, each with one factor that is split and one that is not."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    columns, rows = ("0.base_layer", "0.lora_B.default"), ("2.base_layer", "2.lora_A.default")
    plan: Any = {name: ColwiseParallel() for name in columns} | {name: RowwiseParallel() for name in rows}
    return parallelize_module(model, mesh, plan)


def bases_left_out(model: Any) -> Any:
    """Adapters that FSDP2 splits, on bases that it leaves whole, as Accelerate does with packed ones."""
    return fsdp2(model, ignored_params={model[0].base_layer.weight, model[2].base_layer.weight})


def in_two_blocks(model: Halved) -> Halved:
    """Each half of a side split over the ranks, as transformers splits gate and up-projection."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer, side in ((model.first, 0), (model.second, 1)):
        weight = distribute_tensor(layer.weight.detach(), mesh, [_StridedShard(side, split_factor=2)])
        layer.weight = nn.Parameter(weight)
    return model


def assigned(model: nn.Module) -> Any:
    """Weights that replace those that `fully_shard` has seen, as transformers does when it loads a checkpoint."""
    sharded = fsdp2(model)
    for layer in (sharded[0], sharded[2], sharded[4]):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    return sharded


def in_both_ways(model: nn.Module) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return fsdp2(tensor_parallel(model, mesh["tensor"]), mesh["data"])


def hybrid(model: nn.Module) -> Any:
    return fsdp2(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))


def compiled(model: nn.Module) -> Any:
    return torch.compile(fsdp2(model), backend="aot_eager")


LOW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
WAYS: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
    "fsdp2, looked at between": (Mixed, lambda model: fsdp2(model, reshard_after_forward=False)),
    "fsdp2, kept whole": (Mixed, kept_whole),
    "fsdp2, bfloat16": (Layers, lambda model: fsdp2(model, mp_policy=LOW)),
    "fsdp2, offloaded": (Layers, lambda model: fsdp2(model, offload_policy=CPUOffloadPolicy(pin_memory=False))),
    "fsdp1": (Mixed, lambda model: fsdp1(model, use_orig_params=True)),
    "fsdp1, flat": (Mixed, lambda model: fsdp1(model, use_orig_params=False)),
    "fsdp1, not resharded": (
        Layers,
        lambda model: fsdp1(model, use_orig_params=True, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP),
    ),
    "fsdp1, not sharded": (
        Layers,
        lambda model: fsdp1(model, use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD),
    ),
    "fsdp1, flat, not sharded": (
        Layers,
        lambda model: fsdp1(model, use_orig_params=False, sharding_strategy=ShardingStrategy.NO_SHARD),
    ),
    "fsdp2, assigned": (Layers, assigned),
    "tensor parallel": (Layers, tensor_parallel),
    "tensor parallel, two blocks": (Halved, in_two_blocks),
    "ddp": (Mixed, nn.parallel.DistributedDataParallel),
    "fsdp2 and tensor parallel": (Layers, in_both_ways),
    "hybrid": (Mixed, hybrid),
    "compiled": (Layers, compiled),
    "lora": (Adapted, fsdp2),
    "lora, bases left out": (Adapted, bases_left_out),
    "lora, tensor parallel": (Adapted, adapters_in_parallel),
    "lora, 4 bits": (Packed, fsdp2),
    "adalora": (Adaptive, fsdp2),
    "adalora, fsdp1, flat": (Adaptive, lambda model: fsdp1(model.requires_grad_(), use_orig_params=False)),
    "fsdp2": (Mixed, fsdp2),
}
OF_FOUR = ("fsdp2 and tensor parallel", "hybrid", "fsdp2")
OF_TWO = tuple(way for way in WAYS if way not in OF_FOUR[:2])


def made(way: str) -> tuple[Any, Any]:
    """The model in one piece, and spread over the ranks."""
    kind, spread = WAYS[way]
    torch.manual_seed(0)
    whole = kind()
    torch.manual_seed(0)
    return whole, spread(kind())
