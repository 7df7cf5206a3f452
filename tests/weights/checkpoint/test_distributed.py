"""Layers that Megatron-Core writes as one tensor: chunk by chunk, as its ranks do, and in one chunk."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

import esdmon
from esdmon.errors import InputError, UnreadableError
from esdmon.weights import open_checkpoint

LAYERS = 3
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Chunked(Tensor):
    """A tensor that torch writes in chunks: one for each layer and each half of its rows."""

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        whole = self.as_subclass(Tensor)
        rows = -(-whole.shape[1] // 2)
        items = []
        for layer in range(len(whole)):
            for start in range(0, whole.shape[1], rows):
                offsets = torch.Size([layer, start, *[0] * (whole.ndim - 2)])
                sizes = torch.Size([1, min(rows, whole.shape[1] - start), *whole.shape[2:]])
                properties = TensorProperties.create_from_tensor(whole)
                data = TensorWriteData(ChunkStorageMetadata(offsets, sizes), properties, whole.shape)
                items.append(WriteItem(MetadataIndex(fqn, offsets), WriteItemType.SHARD, tensor_data=data))
        return items

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        layer, start = index.offset[:2]
        whole = self.as_subclass(Tensor)
        return whole[layer : layer + 1, start : start + -(-whole.shape[1] // 2)].clone()


def stacked() -> dict[str, Tensor]:
    """Parameters of all layers, by their names in one."""
    shapes = {
        "self_attention.linear_qkv.weight": (60, 20),
        "self_attention.linear_qkv.layer_norm_weight": (20,),
        "mlp.linear_fc1.weight": (48, 20),
        "mlp.experts.experts.linear_fc1.weight": (2, 48, 20),
    }
    torch.manual_seed(0)
    return {name: torch.randn(LAYERS, *shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", [Chunked, Tensor])
def test_stacked_layers_are_read_one_by_one(kind: Any, tmp_path: Path) -> None:
    """Each under the name that it has where layers differ, in the order of the model."""
    layers, table = stacked(), torch.randn(90, 20)
    state = {f"decoder.layers.{name}": weight.as_subclass(kind) for name, weight in layers.items()}
    moments = {f"optimizer.state.exp_avg.{name}": weight for name, weight in state.items()}
    save({"embedding.word_embeddings.weight": table, **state, **moments}, checkpoint_id=tmp_path, no_dist=True)
    checkpoint = open_checkpoint(tmp_path)
    numbered = [f"decoder.layers.{layer}.{name}" for layer in range(LAYERS) for name in layers]
    assert sorted(checkpoint) == sorted(["embedding.word_embeddings.weight", *numbered])
    for name, weight in layers.items():
        for layer in range(LAYERS):
            assert torch.equal(checkpoint[f"decoder.layers.{layer}.{name}"], weight[layer])
    report = esdmon.analyze(tmp_path)
    shapes = {layer.name: (layer.slices, layer.N, layer.M) for layer in report}
    assert shapes["decoder.layers.2.mlp.linear_fc1"] == (1, 48, 20)
    assert shapes["decoder.layers.2.mlp.experts.experts.linear_fc1"] == (2, 48, 20)
    assert not any("norm" in name for name in shapes)


NOT_STACKED: dict[str, dict[str, tuple[int, ...]]] = {
    "convolutions": {"layers.conv1.weight": (24, 20, 3, 3), "layers.norm.weight": (24,), "layers.fc.weight": (24, 20)},
    "other sizes": {"layers.norm.weight": (3, 20), "layers.fc.weight": (4, 24, 20)},
    "too many": {"layers.norm.weight": (1001, 20), "layers.fc.weight": (1001, 2, 2)},
    "numbered": {"layers.0.fc.weight": (24, 20), "layers.0.norm.weight": (24,), "layers.10.fc.weight": (24, 20)},
}


@pytest.mark.parametrize("kind", NOT_STACKED)
def test_other_layers_keep_their_names(kind: str, tmp_path: Path) -> None:
    """What is not a stack is not taken apart."""
    state = {name: torch.randn(shape) for name, shape in NOT_STACKED[kind].items()}
    save(dict(state), checkpoint_id=tmp_path, no_dist=True)
    assert set(open_checkpoint(tmp_path)) == set(state)


def test_a_sharded_checkpoint_of_lightning_has_the_names_of_its_file(tmp_path: Path) -> None:
    """The rest of it lies beside the tensors; what is in one attribute `model` is named without that."""
    moments = {"state": {"model.fc.weight": {"exp_avg": torch.randn(24, 20)}}}
    state = {"model": {"model.fc.weight": torch.randn(24, 20)}, "optimizer_0": moments}
    save(state, checkpoint_id=tmp_path, no_dist=True)
    assert list(open_checkpoint(tmp_path)) == ["model.fc.weight"]
    torch.save({"pytorch-lightning_version": "2.6.6", "epoch": 1}, tmp_path / "meta.pt")
    assert list(open_checkpoint(tmp_path)) == ["fc.weight"]


def test_parts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    """Numbers that no part holds would be those of memory as it was."""
    name = "decoder.layers.mlp.linear_fc1.weight"
    save({name: stacked()["mlp.linear_fc1.weight"].as_subclass(Chunked)}, checkpoint_id=tmp_path, no_dist=True)
    index = FileSystemReader(tmp_path).read_metadata()
    entry: Any = index.state_dict_metadata[name]
    assert len(entry.chunks) == 2 * LAYERS
    entry.chunks.pop()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(UnreadableError, match=r"the parts of a tensor of shape \(3, 48, 20\) do not add up to it"):
        open_checkpoint(tmp_path)[name]


def test_what_lies_beside_an_index_is_not_named_as_unread(tmp_path: Path) -> None:
    """Neither the index itself nor what Lightning and Megatron-Core write beside it, nor an optimizer's folder."""
    save({"fc.weight": torch.randn(40, 30)}, checkpoint_id=tmp_path, no_dist=True)
    save({"state.fc.weight.exp_avg": torch.randn(40, 30)}, checkpoint_id=tmp_path / "optimizer_0", no_dist=True)
    for name in ("meta.pt", "common.pt", "other.pt"):
        torch.save({"fc.weight": torch.randn(40, 30)}, tmp_path / name)
    (origin,) = esdmon.analyze(tmp_path).origins
    assert origin.files == (".metadata", "__0_0.distcp")
    assert origin.unread == ("other.pt",)


@pytest.mark.parametrize("names", [["pytorch_model_fsdp_0"], ["pytorch_model_fsdp_0", "pytorch_model_fsdp_1"]])
def test_the_folders_of_accelerate_are_read(names: list[str], tmp_path: Path) -> None:
    """Several as its models in files are: the first as `model`."""
    for name in [*names, "optimizer_0"]:
        save({"model": {"fc.weight": torch.randn(40, 30)}}, checkpoint_id=tmp_path / name, no_dist=True)
    expected = ["fc.weight"] if len(names) == 1 else ["model.fc.weight", "model_1.fc.weight"]
    assert list(open_checkpoint(tmp_path)) == expected


def test_a_truncated_file_is_named_with_its_size(tmp_path: Path) -> None:
    """In one sentence for all its tensors."""
    save({"a.weight": torch.randn(40, 30), "b.weight": torch.randn(40, 30)}, checkpoint_id=tmp_path, no_dist=True)
    with (tmp_path / "__0_0.distcp").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(
        InputError, match=r"is incomplete: __0_0\.distcp has 1000 bytes, and its index lists tensors up to"
    ):
        open_checkpoint(tmp_path)
