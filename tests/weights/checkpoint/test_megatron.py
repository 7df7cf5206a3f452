"""Distributed checkpoints that Megatron-Core writes from a GPT on one and two ranks, and the files of Megatron-LM."""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import esdmon
from esdmon.errors import InputError
from esdmon.weights import open_checkpoint
from tests.ranks import torchrun
from tests.runtime.ranks.test_megatron import gathered, network

MEASURES = ("alpha", "frobenius_norm", "spectral_norm")
GATED, EXPERTS, GROUPED, STAGES = "a gate, shared heads", "experts", "grouped experts", "replicas"
HALVES = {"singleton_local_shards": True}
JOBS: dict[str, tuple[str, int, dict[str, bool] | None]] = {
    "gated": (GATED, 1, None),
    "biases": ("biases, a head each", 1, None),
    "experts": (EXPERTS, 1, None),
    "grouped": (GROUPED, 1, None),
    "stages": (STAGES, 2, None),
    "halves": (GATED, 1, HALVES),
    "halves of experts": (EXPERTS, 1, HALVES),
}
"""The way of `network`, the number of pipeline stages, and the metadata for `sharded_state_dict`."""


def with_optimizer(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a model, and that of Megatron's optimizer beside it, as Megatron-LM saves them."""
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.optimizer.optimizer import FP32Optimizer

    inner = torch.optim.AdamW(model.parameters(), lr=0.0)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    inner.step()
    optimizer = FP32Optimizer(inner, OptimizerConfig(optimizer="adam", lr=0.0), lambda _: None)
    return {"model": state, "optimizer": optimizer.sharded_state_dict(state), "args": Namespace(), "iteration": 5}


def rank_of_a_job(folder: str) -> None:
    tensor = torch.tensor
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]  # where Megatron allocates
    torch.cuda.current_stream = lambda *_: None  # type: ignore[assignment]
    torch.cuda.synchronize = lambda *_: None
    torch.tensor = lambda data, *, dtype=None, **_: tensor(data, dtype=dtype)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    from megatron.core import dist_checkpointing

    for name, (way, stages, metadata) in JOBS.items():
        model = network(way, 1 if stages == 2 else 2, stages=stages)
        place = Path(folder) / name
        if distributed.get_rank() == 0:
            place.mkdir()
        distributed.barrier()
        state = model.sharded_state_dict(metadata=metadata)
        dist_checkpointing.save(with_optimizer(model, state) if metadata is None else state, str(place))
        whole = model.state_dict() if stages == 2 else gathered(way, model)
        torch.save(whole, f"{folder}/{name}.whole.{distributed.get_rank()}")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all checkpoints."""
    pytest.importorskip("megatron.core", reason="Megatron-Core has packages for Linux only")
    folder = tmp_path_factory.mktemp("written")
    torchrun(rank_of_a_job, str(folder), ranks=2)
    return folder


def whole(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    content = torch.load(folder / f"{name}.whole.{rank}", weights_only=False)
    return {key: value for key, value in content.items() if isinstance(value, Tensor) and value.ndim > 1}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gated", "biases", "halves"])
def test_the_weights_are_whole_under_the_names_of_the_model(written: Path, name: str) -> None:
    """Layers that are stacked one by one, the gate above the up-projection, and no moment of the optimizer."""
    checkpoint, expected = open_checkpoint(written / name), whole(written, name)
    read = {key: outline for key, outline in checkpoint.outlines.items() if outline.ndim > 1}
    assert sorted(read) == sorted(expected)
    for key, weight in expected.items():
        assert torch.equal(checkpoint[key], weight), key
    report, live = esdmon.analyze(written / name), esdmon.analyze(expected)
    assert [origin.unread for origin in report.origins] == [()]
    names = sorted(layer.name for layer in report)
    assert names == sorted(layer.name for layer in live)
    for layer in live:
        numbers = [report[layer.name].measures[measure] for measure in MEASURES]
        assert numbers == pytest.approx([layer.measures[measure] for measure in MEASURES], rel=1e-5), layer.name
    assert ("decoder.layers.1.mlp.linear_fc1/gate" in names) is (name != "biases")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_layers_of_stages_have_their_numbers_in_the_whole_model(written: Path) -> None:
    checkpoint = open_checkpoint(written / "stages")
    for rank in (0, 1):
        for key, weight in whole(written, "stages", rank).items():
            parts = key.split(".")
            if parts[1] == "layers":
                parts[2] = str(int(parts[2]) + 2 * rank)
            assert torch.equal(checkpoint[".".join(parts)], weight), key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_experts_are_read_as_those_of_the_model(written: Path) -> None:
    """One stack for each projection, gate and up-projection apart, whichever module holds them."""
    one_by_one, pooled = whole(written, "experts"), whole(written, "grouped")
    stacked, apart = open_checkpoint(written / "experts"), open_checkpoint(written / "halves of experts")
    experts = "decoder.layers.1.mlp.experts."
    for number in range(3):
        for part in ("linear_fc1", "linear_fc2"):
            weight = one_by_one[f"{experts}local_experts.{number}.{part}.weight"]
            assert torch.equal(stacked[f"{experts}experts.{part}.weight"][number], weight)
            assert torch.equal(apart[f"{experts}experts.{number}.{part}.weight"], weight)
    both = pooled[f"{experts}weight1"].reshape(3, 64, 2, -1)
    report = esdmon.analyze(written / "grouped")
    for half, label in enumerate(("gate", "up")):
        layer = report[f"{experts}experts.linear_fc1/{label}"]
        live = esdmon.analyze({"experts.weight": both[:, :, half].transpose(1, 2).contiguous()})["experts"]
        assert (layer.slices, layer.N, layer.M) == (3, 96, 64)
        read = [layer.measures[measure] for measure in MEASURES]
        assert read == pytest.approx([live.measures[measure] for measure in MEASURES], rel=1e-5)


@pytest.mark.parametrize("key", ["tensor", "pipeline", "expert"])
def test_the_file_of_one_rank_is_refused_without_the_others(tmp_path: Path, key: str) -> None:
    """Its arguments say over how many ranks the model is split; the whole model is read."""
    state = {"decoder.layers.0.mlp.linear_fc2.weight": torch.randn(40, 30)}
    path = tmp_path / "iter_0000005" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    for size in (1, 2):
        arguments = Namespace(**{f"{key}_model_parallel_size": size}, num_layers=1)
        torch.save({"args": arguments, "model": state, "iteration": 5}, path)
        for place in (path, path.parent, path.parents[1]):
            if size == 1:
                assert list(open_checkpoint(place)) == list(state)
                continue
            with pytest.raises(InputError, match=r"is one of 2 parts of a model.*convert\.py$"):
                open_checkpoint(place)


def test_the_folder_of_a_rank_behind_the_first_is_refused_alone(tmp_path: Path) -> None:
    """Its number says that there are others, also in a file without arguments."""
    for name in ("mp_rank_01", "mp_rank_00_002", "tp_rank_00_pp_rank_001"):
        path = tmp_path / name / ("model_weights.ckpt" if "pp" in name else "model_optim_rng.pt")
        path.parent.mkdir()
        torch.save({"model": {"fc.weight": torch.randn(40, 30)}}, path)
        with pytest.raises(InputError, match=r"is one of [23] parts of a model"):
            open_checkpoint(path.parent)
        shutil.rmtree(path.parent)


def test_an_iteration_that_is_gone_is_named(tmp_path: Path) -> None:
    """With one that is there."""
    path = tmp_path / "iter_0000004" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({"model": {"fc.weight": torch.randn(40, 30)}}, path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    with pytest.raises(InputError, match=r"names iter_0000005, which does not exist.*such as iter_0000004/mp_rank_00$"):
        open_checkpoint(tmp_path)
