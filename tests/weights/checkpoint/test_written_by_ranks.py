"""Checkpoints that ranks have written by the libraries' own writers, read and compared with the whole model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import esdmon
from esdmon.errors import InputError
from esdmon.weights import open_checkpoint
from tests.ranks import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PART = "the part of one rank: save the whole"
MEASURES = ("alpha", "frobenius_norm", "spectral_norm")


class Net(nn.Module):
    """Sides that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(33, 50)
        self.second = nn.Linear(50, 33, bias=False)
        self.attention = nn.MultiheadAttention(33, 3, batch_first=True)

    def forward(self, x: Any) -> Any:
        x = self.second(torch.tanh(self.first(x)))
        return self.attention(x, x, x)[0]


class State:
    """A model and its optimizer, as an object with a `state_dict`."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.of = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        return dict(zip(("model", "optim"), get_state_dict(*self.of), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def fsdp2(mesh: Any = None, model: Any = None) -> Any:
    model = model or Net()
    fully_shard(model.second, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(mesh: Any = None) -> Any:
    mesh = mesh or init_device_mesh("cpu", (distributed.get_world_size(),))
    return parallelize_module(Net(), mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})


def in_both_ways() -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return fsdp2(mesh["data"], tensor_parallel(mesh["tensor"]))


def hybrid() -> Any:
    return fsdp2(init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))


def fsdp1() -> Any:
    return FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True)


def nested(model: Any, optimizer: Any, folder: Path) -> None:
    save(State(model, optimizer).state_dict(), checkpoint_id=folder)


def stateful(model: Any, optimizer: Any, folder: Path) -> None:
    save({"app": State(model, optimizer)}, checkpoint_id=folder)


def asynchronous(model: Any, optimizer: Any, folder: Path) -> None:
    saved: Any = async_save(State(model, optimizer).state_dict(), checkpoint_id=folder)
    saved.result()


def flat(model: Any, optimizer: Any, folder: Path) -> None:
    """As torchtitan writes it."""
    flatten = StateDictOptions(flatten_optimizer_state_dict=True)
    weights, states = get_state_dict(model, optimizer, options=flatten)
    save({**weights, "optimizer": states, "train_state": {"step": 3}}, checkpoint_id=folder)


def as_safetensors(model: Any, _: Any, folder: Path) -> None:
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    save(get_model_state_dict(model), storage_writer=writer)


def joined_safetensors(model: Any, _: Any, folder: Path) -> None:
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True, enable_consolidation=True)
    save(get_model_state_dict(model), storage_writer=writer)


def each_by_torch(model: Any, _: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    torch.save({"model": model.state_dict()}, folder / f"model_{distributed.get_rank()}.pt")


def sharded_by_torch(model: Any, optimizer: Any, folder: Path) -> None:
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        each_by_torch(model, optimizer, folder)


def by_accelerate(kind: str, version: int) -> Callable[[Any, Any, Path], None]:
    def write(model: Any, optimizer: Any, folder: Path) -> None:
        from accelerate import Accelerator, FullyShardedDataParallelPlugin
        from accelerate.utils import DistributedType, save_fsdp_model, save_fsdp_optimizer

        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=version, state_dict_type=kind, cpu_ram_efficient_loading=False
        )
        accelerator = Accelerator(cpu=True)
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = DistributedType.FSDP
        folder.mkdir(exist_ok=True)
        save_fsdp_model(plugin, accelerator, model, str(folder), 0)
        save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(folder), 0)

    return write


Jobs = dict[str, tuple[Callable[[], Any], Callable[[Any, Any, Path], None]]]
WHOLE: dict[int, Jobs] = {
    2: {
        "FSDP2": (fsdp2, nested),
        "an object": (fsdp2, stateful),
        "torchtitan": (fsdp2, flat),
        "in the background": (fsdp2, asynchronous),
        "joined safetensors": (fsdp2, joined_safetensors),
        "tensor parallel": (tensor_parallel, nested),
        "FSDP1": (fsdp1, nested),
        "accelerate": (fsdp2, by_accelerate("SHARDED_STATE_DICT", 2)),
        "accelerate, whole": (fsdp2, by_accelerate("FULL_STATE_DICT", 2)),
        "accelerate, FSDP1": (fsdp1, by_accelerate("SHARDED_STATE_DICT", 1)),
    },
    4: {"FSDP2 and tensor parallel": (in_both_ways, nested), "HSDP": (hybrid, flat)},
}
PARTS: dict[int, Jobs] = {
    2: {
        "safetensors": (fsdp2, as_safetensors),
        "DTensors": (tensor_parallel, each_by_torch),
        "ShardedTensors": (fsdp1, sharded_by_torch),
        "accelerate, local": (fsdp1, by_accelerate("LOCAL_STATE_DICT", 1)),
    },
    4: {},
}


def rank_of_a_job(folder: str, size: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for name, (make, write) in (WHOLE[size] | PARTS[size]).items():
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # the weights stay those of `Net()`
        model(torch.randn(2, 4, 33)).square().mean().backward()
        optimizer.step()
        write(model, optimizer, Path(folder) / name)
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """How many ranks there were, and the folder with their checkpoints."""
    folder = tmp_path_factory.mktemp("written")
    torchrun(rank_of_a_job, str(folder), request.param, ranks=request.param)
    return request.param, folder


def test_each_matrix_is_read_once_and_whole(written: tuple[int, Path]) -> None:
    """Under the name of the live model, with its numbers; of what lies beside it, parts that were joined are named."""
    size, folder = written
    expected = esdmon.analyze(Net())
    for name in WHOLE[size]:
        report = esdmon.analyze(folder / name)
        assert sorted(layer.name for layer in report) == sorted(layer.name for layer in expected), name
        for layer in expected:
            read = {measure: report[layer.name].measures[measure] for measure in MEASURES}
            assert read == pytest.approx({measure: layer.measures[measure] for measure in MEASURES}, rel=1e-4), name
        (origin,) = report.origins
        assert origin.unread == (("sharded",) if name == "joined safetensors" else ()), name


def test_a_part_is_never_read_as_a_whole(written: tuple[int, Path]) -> None:
    """It is refused, or its layers are skipped with the reason; those that each rank holds whole are read."""
    size, folder = written
    if size == 4:
        return
    for name in ("safetensors", "accelerate, local"):
        for path in (folder / name, min(path for path in (folder / name).iterdir() if path.is_file())):
            with pytest.raises(InputError, match="is one of 2 parts of a model that is split over ranks"):
                open_checkpoint(path)
    alone = folder / "alone.safetensors"
    shutil.copy(max((folder / "safetensors").iterdir()), alone)
    with pytest.raises(InputError, match=r"alone\.safetensors is one part of a model that is split over ranks"):
        open_checkpoint(alone)
    report = esdmon.analyze(folder / "DTensors" / "model_1.pt")
    assert {layer.name for layer in report if PART in layer.reason} == {"first", "second"}
    assert report["attention.out_proj"].status == "ok"
    report = esdmon.analyze(folder / "ShardedTensors" / "model_0.pt")
    assert all(PART in layer.reason for layer in report)
    assert len(report) == len(esdmon.analyze(Net()))


def test_what_a_killed_writer_leaves_is_refused(written: tuple[int, Path], tmp_path: Path) -> None:
    """The index is written last, and under another name at first."""
    size, folder = written
    if size == 4:
        return
    killed = shutil.copytree(folder / "FSDP2", tmp_path / "step-20")
    (killed / ".metadata").rename(killed / ".metadata.tmp")
    torch.save({}, killed / "common.pt")  # as Megatron-Core writes first
    for path in (killed, killed / "__0_0.distcp"):
        with pytest.raises(InputError, match=r"step-20 is incomplete: it has \.distcp files without their index"):
            open_checkpoint(path)
    shutil.copytree(folder / "FSDP2", tmp_path / "step-10")
    with pytest.raises(InputError, match=r"contains no checkpoint.*Pass one of its folders, such as step-10"):
        open_checkpoint(tmp_path)
