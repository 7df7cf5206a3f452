"""Folders as libraries write them: read by what their files say, or refused with what was found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

import esdmon
from esdmon.errors import InputError
from esdmon.weights import discover, open_checkpoint, open_model
from tests.weights.checkpoint.folders import files, w

READ: dict[str, tuple[dict[str, Any], list[str]]] = {
    "two models of accelerate": (
        {"model.safetensors": {"a": w()}, "model_1.safetensors": {"b": w()}, "optimizer.bin": {"exp_avg": w()}},
        ["model.a", "model_1.b"],
    ),
    "twins of open_clip": ({f"open_clip_{x}": {"a": w()} for x in ("model.safetensors", "pytorch_model.bin")}, ["a"]),
    "an optimizer under another name": ({"weights.safetensors": {"a": w()}, "optim.safetensors": {"a": w()}}, ["a"]),
    "variants of diffusers": (
        {f"diffusion_pytorch_model{kind}.safetensors": {"a": w()} for kind in ("", ".fp16", ".non_ema")},
        ["a"],
    ),
    "shards by number": ({f"x-0000{i}-of-00002.safetensors": {f"l.{i}": w()} for i in (1, 2)}, ["l.1", "l.2"]),
    "DeepSpeed": ({"mp_rank_00_model_states.pt": {"module": {"a": w()}, "optimizer": {"b": w()}}}, ["a"]),
    "experts of DeepSpeed": (
        {
            "mp_rank_00_model_states.pt": {"module": {"moe.gate": w()}},
            "expp_rank_0_mp_rank_00_optim_states.pt": {"optimizer": {"x": w()}},
        }
        | {f"layer_0_expert_{i}_mp_rank_00_model_states.pt": {f"moe.experts.{i}": w()} for i in (10, 2)},
        ["moe.gate", "moe.experts.2", "moe.experts.10"],
    ),
    "stages of DeepSpeed's pipeline": (
        {f"mp_rank_0{i}_model_states.pt": {"module": None, "optimizer": None} for i in (0, 1)}
        | {"layer_00-model_states.pt": {"weight": w(), "bias": w()[0]}, "layer_01-model_states.pt": {}}
        | {"layer_10-model_states.pt": {"mlp.weight": w()}, "layer_09-model_states.pt": {"mlp.weight": w()}},
        ["0.weight", "0.bias", "9.mlp.weight", "10.mlp.weight"],
    ),
    "frozen weights of DeepSpeed": (
        {"mp_rank_00_model_states.pt": {"module": {"a": w(), "b": w()}, "frozen_param_fragments": {"b": w()}}},
        ["a", "b"],
    ),
    "a blob without a suffix": ({"4f2a": {"a": w()}}, ["a"]),
}


@pytest.mark.parametrize("kind", READ)
def test_a_folder_is_read_as_its_library_reads_it(kind: str, tmp_path: Path) -> None:
    """Each weight under its name."""
    content, names = READ[kind]
    assert list(open_checkpoint(files(tmp_path, content))) == names


@pytest.mark.parametrize("kind", READ)
def test_each_file_of_a_folder_is_named_as_read_or_not_read(kind: str, tmp_path: Path) -> None:
    """And none as both; files of optimizers and the like are not listed."""
    content, _ = READ[kind]
    _, (origin,) = open_model(files(tmp_path, content))
    assert not set(origin.files) & set(origin.unread)
    assert {name for name in content if "optim" not in name} <= {*origin.files, *origin.unread} <= set(content)
    assert origin.files


UNREAD: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "another format of the same model": (
        {"model.safetensors": {"a": w()}, "pytorch_model.bin": {"a": w()}},
        ["model.safetensors"],
        ["pytorch_model.bin"],
    ),
    "later checkpoints, and neither the optimizer nor the monitor": (
        {"model.safetensors": {"a": w()}, "optimizer.pt": {"b": w()}, "esdmon.pt": {"c": w()}, "zoo.pt": {"a": w()}}
        | {f"checkpoint-{step}/model.safetensors": {"a": w()} for step in (500, 1000)},
        ["model.safetensors"],
        ["checkpoint-500", "checkpoint-1000", "zoo.pt"],
    ),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_lies_beside_the_weights_of_a_folder_is_named(kind: str, tmp_path: Path) -> None:
    """By the report too; not where the user has chosen the file."""
    content, read, unread = UNREAD[kind]
    (origin,) = esdmon.analyze(files(tmp_path, content)).origins
    assert ([*origin.files], [*origin.unread]) == (read, unread)
    assert f"not read, in {tmp_path}: {unread[0]}" in str(esdmon.analyze(tmp_path))
    chosen = esdmon.analyze(tmp_path / read[0])
    assert chosen.origins[0].unread == ()
    assert "read from" not in str(chosen)
    assert esdmon.analyze({"a": w()}).origins == ()


def test_the_only_file_with_matrices_is_read(tmp_path: Path) -> None:
    """As in a folder of SpeechBrain's Checkpointer; where there are two, the error names those."""
    layer = torch.nn.Linear(16, 16)
    loss: torch.Tensor = layer(torch.ones(1, 16)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer = torch.optim.Adam(layer.parameters())
    optimizer.step()
    content = {
        "adam.ckpt": optimizer.state_dict(),
        "model.ckpt": layer.state_dict(),
        "normalizer.ckpt": {"count": 3, "glob_mean": torch.randn(80)},
    }
    for text in ("brain.ckpt", "counter.ckpt"):
        (tmp_path / text).write_text("avg_train_loss: 0.0\nstep: 24\n")
    checkpoint = open_checkpoint(files(tmp_path, content))
    assert [file.name for file in checkpoint.files] == ["model.ckpt"]
    _, (origin,) = open_model(tmp_path)
    assert origin.unread == ("adam.ckpt", "normalizer.ckpt")
    files(tmp_path, {"decoder.ckpt": layer.state_dict(), "zz.ckpt": content["normalizer.ckpt"]})
    with pytest.raises(InputError, match=r"Pass one of them, such as decoder\.ckpt or model\.ckpt"):
        open_checkpoint(tmp_path)


def test_a_pipeline_of_diffusers_has_its_components_apart(tmp_path: Path) -> None:
    """Each under the name of its folder."""
    parts = {f"{name}/diffusion_pytorch_model.safetensors": {"a": w()} for name in ("unet", "vae")}
    (tmp_path / "model_index.json").write_text("{}")
    assert list(open_checkpoint(files(tmp_path, parts))) == ["unet.a", "vae.a"]
    _, (origin,) = open_model(tmp_path)
    assert origin.files == tuple(parts)
    assert origin.unread == ()


@pytest.mark.parametrize(("where", "attribute"), [("base.modules", "model"), ("models", "auto_model")])
def test_the_modules_of_sentence_transformers_are_one_model(where: str, attribute: str, tmp_path: Path) -> None:
    """Under their names in it, the model of transformers by the attribute that holds it; none outside of the folder."""
    content = {
        "model.safetensors": {"layer.0.dense.weight": w()},
        "2_Dense/model.safetensors": {"linear.weight": w(2.0)},
    }
    listed = [
        ("0", "", "Transformer"),
        ("1", "1_Pooling", "Pooling"),
        ("2", "2_Dense", "Dense"),
        ("3", "../x", "Dense"),
    ]
    modules = [{"name": n, "path": path, "type": f"sentence_transformers.{where}.{kind}"} for n, path, kind in listed]
    files(tmp_path / "a", content)
    files(tmp_path / "x", {"model.safetensors": {"a": w()}})
    (tmp_path / "a" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "a" / "config.json").write_text('{"architectures": ["BertModel"]}')
    report = esdmon.analyze(tmp_path / "a")
    assert [layer.name for layer in report] == [f"0.{attribute}.layer.0.dense", "2.linear"]
    assert report.origins[0].files == tuple(content)
    assert report.origins[0].unread == ()


@pytest.mark.parametrize("at", ["", "0_Router"])
def test_the_modules_behind_a_router_are_read_by_route(at: str, tmp_path: Path) -> None:
    """As sentence-transformers 6.2 saves them; one that two routes share is read once, and none outside the folder."""
    place = tmp_path / "a" / at
    content = {f"{name}_0_Dense/model.safetensors": {"linear.weight": w()} for name in ("query", "document")}
    files(place, {**content, "document_1_Dense/model.safetensors": {"linear.weight": w(2.0)}})
    files(tmp_path / "a", {"1_Dense/model.safetensors": {"linear.weight": w(3.0)}})
    files(tmp_path / "x", {"model.safetensors": {"a": w()}})
    structure = {
        "query": ["query_0_Dense", "document_1_Dense"],
        "document": ["document_0_Dense", "document_1_Dense", "../x", 3],
        "none": None,
    }
    kind = "sentence_transformers.base.modules"
    types = dict.fromkeys(("query_0_Dense", "document_0_Dense", "document_1_Dense"), f"{kind}.dense.Dense")
    (place / "router_config.json").write_text(json.dumps({"types": types, "structure": structure}))
    modules = [("0", at, "router.Router"), ("1", "1_Dense", "dense.Dense")]
    listed = [{"name": name, "path": path, "type": f"{kind}.{end}"} for name, path, end in modules]
    (tmp_path / "a" / "modules.json").write_text(json.dumps(listed))
    names = ["0.sub_modules.query.0.linear", "0.sub_modules.query.1.linear", "0.sub_modules.document.0.linear"]
    report = esdmon.analyze(tmp_path / "a")
    assert [layer.name for layer in report] == [*names, "1.linear"]
    assert report.origins[0].unread == ()


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", '[{"path": ""}]', "no", '[{"name": 0, "path": "", "type": ""}]'])
def test_a_list_of_modules_of_another_kind_is_passed_over(text: str, tmp_path: Path) -> None:
    """The folder is read without it."""
    files(tmp_path, {"model.safetensors": {"a.weight": w()}})
    (tmp_path / "modules.json").write_text(text)
    assert list(open_checkpoint(tmp_path)) == ["a.weight"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "steps of a run": ({f"step-{i}.safetensors": {"a": w()} for i in (1, 2)}, "contains 2 checkpoints. Pass one"),
    "two formats": ({"last.pt": {"a": w()}, "all.safetensors": {"a": w()}}, "contains 2 checkpoints. Pass one"),
    "a missing shard": (
        {f"x-0000{i}-of-00003.bin": {f"{i}": w()} for i in (1, 3)},
        "2 of 3 shards: number 2 is missing",
    ),
    "two generations": (
        {"x-00001-of-00001.safetensors": {"a": w()}, "x-00001-of-00002.safetensors": {"a": w()}},
        "contains 2 checkpoints",
    ),
    "a name in two shards": (
        {f"x-0000{i}-of-00002.bin": {"a": w()} for i in (1, 2)},
        "contains a in two of its shards",
    ),
    "ZeRO-3": ({"zero_pp_rank_0_mp_rank_00_model_states.pt": {"a": torch.empty(0)}}, "sharded by ZeRO-3"),
    "a pipeline of tensor parallel layers": (
        {f"layer_00-model_0{i}-model_states.pt": {"a": w()} for i in (0, 1)},
        "is split over 2 ranks",
    ),
    "AutoEP": (
        {f"layer_0_expert_{i}_mp_rank_00_model_states.pt": {"experts.w1": w()} for i in (0, 1)}
        | {"mp_rank_00_model_states.pt": {"module": {"a": w()}}},
        "contains experts.w1 in two of its files, one of them layer_0_expert_1_mp",
    ),
    "checkpoints in folders": (
        {f"{name}/model.safetensors": {"a": w()} for name in ("step-9", "step-10")} | {"zero/optimizer.pt": {"a": w()}},
        "Pass one of its folders, such as step-10",
    ),
    "slices of LLaMA": (
        {f"consolidated.0{i}.pth": {"a": w()} for i in (0, 1)},
        "consolidated.00.pth is one of 2 parts",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_is_not_one_model_is_refused(kind: str, tmp_path: Path) -> None:
    """With what was found."""
    content, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        open_checkpoint(files(tmp_path, content))


def test_an_index_decides_which_file_a_tensor_is_read_from(tmp_path: Path) -> None:
    """A stale copy in another shard is not read."""
    shards = {"1.safetensors": {"a": w(1)}, "2.safetensors": {"a": w(2), "b": w(3)}}
    checkpoint = open_checkpoint(files(tmp_path, shards, {"b": "2.safetensors", "a": "1.safetensors"}))
    assert [float(checkpoint[name].max()) for name in checkpoint] == [1, 3]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"a": "1.safetensors", "c": "1.safetensors"}, "lists c in 1.safetensors, which does not contain it"),
        ({"a": "../1.safetensors"}, "which is outside of its folder"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(index: dict[str, str], message: str, tmp_path: Path) -> None:
    """A tensor that is nowhere, or a file elsewhere."""
    with pytest.raises(InputError, match=message):
        open_checkpoint(files(tmp_path, {"1.safetensors": {"a": w()}}, index))


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """safetensors sorts by characters."""
    files(tmp_path, {"model.safetensors": {f"layers.{i}": w() for i in range(12)}})
    assert list(open_checkpoint(tmp_path)) == [f"layers.{i}" for i in range(12)]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("nested", [True, False])
def test_a_distributed_checkpoint_holds_the_model_alone(nested: object, tmp_path: Path) -> None:
    """As torch's recipe nests it, or flat; optimizer states are recognised at any depth."""
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 24))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 20)).sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    state = {"app": {"model": weights, "optim": moments}} if nested else weights
    save(state, checkpoint_id=tmp_path, no_dist=True)
    checkpoint = open_checkpoint(tmp_path)
    assert [matrix.name for matrix in discover(checkpoint).matrices] == ["0", "1"]
    assert torch.equal(checkpoint["1.weight"], model.get_parameter("1.weight"))
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of the 1 files with its tensors, such as __0_0.distcp"):
        open_checkpoint(tmp_path)


PARTS = {
    "DeepSpeed": ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
    "ZeRO-3": ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"),
    "Megatron": ("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"),
    "NeMo": ("tp_rank_00_pp_rank_000/model_weights.ckpt", "tp_rank_01_pp_rank_000/model_weights.ckpt"),
    "LLaMA": ("consolidated.00.pth", "consolidated.01.pth"),
    "FSDP, by its name alone": ("model_world_size_2_rank_0.pt", "other.pt"),
    "fairseq": ("checkpoint_last-shard0.pt", "checkpoint_last-shard1.pt"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_the_part_of_one_rank_is_not_read_as_a_whole(kind: str, tmp_path: Path) -> None:
    """Where another lies beside it: each matrix would be a slice."""
    part, other = PARTS[kind]
    files(tmp_path, {part: {"module": {"a": w()}}})
    if "world_size" not in part:
        assert "a" in {name.rpartition(".")[2] for name in open_checkpoint(tmp_path / part)}
    files(tmp_path, {other: {"module": {"a": w()}}})
    with pytest.raises(InputError, match="is one of 2 parts of a model that is split over ranks, which is not read"):
        open_checkpoint(tmp_path / part)


def test_the_folders_of_a_cache_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    """A snapshot of the hub is two folders down, and its files are links."""
    for name in ("blobs", "refs", "snapshots/abc"):
        (tmp_path / name).mkdir(parents=True)
    save_file({"a": w()}, tmp_path / "blobs" / "ff00")
    (tmp_path / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/ff00")
    with pytest.raises(InputError, match=r"Pass one of its folders, such as snapshots.abc"):
        open_checkpoint(tmp_path)
    assert list(open_checkpoint(tmp_path / "snapshots" / "abc")) == ["a"]


@pytest.mark.parametrize("component", ["../other", ".", "unet/../../other"])
def test_the_components_of_a_pipeline_are_in_its_folder(component: str, tmp_path: Path) -> None:
    """What its index names elsewhere is not read."""
    names = ("run/model.safetensors", "run/unet/diffusion_pytorch_model.safetensors", "other/model.safetensors")
    files(tmp_path, {name: {"a": w()} for name in names})
    (tmp_path / "run" / "model_index.json").write_text(json.dumps({component: ["diffusers", "UNet2DModel"]}))
    assert [*open_checkpoint(tmp_path / "run")] == ["unet.a"]


@pytest.mark.parametrize("name", ["latest", "latest_checkpointed_iteration.txt"])
@pytest.mark.parametrize("text", ["", ".", "..", "../run"])
def test_the_file_that_names_the_last_checkpoint_names_none(
    text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is empty, in the folder where the command runs: the weights beside it are read."""
    folder = files(tmp_path / "run", {"model.safetensors": {"a": w()}})
    (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    assert [*open_checkpoint(".")] == [*open_checkpoint(folder)] == ["a"]


def test_a_checkpoint_of_megatron_is_read_from_any_of_its_folders(tmp_path: Path) -> None:
    """Unless it is split over ranks; its file is called like an optimizer's."""
    rank = tmp_path / "iter_0000020" / "mp_rank_00"
    rank.mkdir(parents=True)
    state = {"model": {"language_model": {"encoder": {"layers.0.weight": w()}}}, "optimizer": {"x": w()}}
    torch.save(state, rank / "model_optim_rng.pt")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    for folder in (rank, rank.parent, tmp_path):
        assert list(open_checkpoint(folder)) == ["language_model.encoder.layers.0.weight"]
    (rank.parent / "mp_rank_01").mkdir()
    for folder in (rank, rank.parent, tmp_path):
        with pytest.raises(InputError, match="is split over 2 ranks"):
            open_checkpoint(folder)
