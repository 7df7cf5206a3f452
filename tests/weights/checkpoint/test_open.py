"""Checkpoints of every kind, written by the libraries that write them; damaged and hostile ones."""

import argparse
import gzip
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import GPT2Config, GPT2LMHeadModel

import esdmon
from esdmon.errors import InputError
from esdmon.weights import discover, open_checkpoint
from tests.fixtures.memory import MEASURE


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(30, 20, generator=generator)
    return {
        "a.weight": first,
        "tied.weight": first,
        "b.weight": torch.randn(24, 16, 3, 3, generator=generator).bfloat16(),
        "b.bias": torch.ones(24),
    }


def untied() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights().items() if name != "tied.weight"}


def as_pt(folder: Path) -> Path:
    torch.save(weights(), folder / "a.pt")
    return folder / "a.pt"


def as_lightning(folder: Path) -> Path:
    state = {"epoch": 3, "state_dict": weights(), "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(30, 20)}}}]}
    torch.save(state, folder / "last.ckpt")
    return folder / "last.ckpt"


def as_training_state(folder: Path) -> Path:
    torch.save({"encoder": weights(), "optimizer": {"state": {}}, "lr": 0.1}, folder / "run.pth")
    return folder / "run.pth"


def as_old(folder: Path) -> Path:
    torch.save(weights(), folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def as_safetensors(folder: Path) -> Path:
    save_file(untied(), folder / "a.safetensors")
    return folder / "a.safetensors"


def as_shards(folder: Path) -> Path:
    names = list(untied())
    for number, name in enumerate(names):
        save_file({name: untied()[name]}, folder / f"model-{number}.safetensors")
    index = {"weight_map": {name: f"model-{number}.safetensors" for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_sharded_bin(folder: Path) -> Path:
    torch.save(untied(), folder / "pytorch_model.bin")
    return folder


def as_distributed(folder: Path) -> Path:
    save({"model": untied(), "optimizer": {"exp_avg": torch.ones(30, 20)}}, checkpoint_id=folder, no_dist=True)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    kind.__name__.removeprefix("as_"): kind
    for kind in (
        as_pt,
        as_lightning,
        as_training_state,
        as_old,
        as_safetensors,
        as_shards,
        as_sharded_bin,
        as_distributed,
    )
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_reads_like_the_mapping_that_it_holds(kind: str, tmp_path: Path) -> None:
    """The same names, numbers, aliases and coverage; other tensors in it are not weights."""
    path = KINDS[kind](tmp_path)
    prefix = "encoder." if kind == "training_state" else ""
    expected = esdmon.analyze({f"{prefix}{name}": tensor for name, tensor in weights().items()}, precision="exact")
    report = esdmon.analyze(path, precision="exact")
    assert [layer.name for layer in report] == [layer.name for layer in expected] == [f"{prefix}a", f"{prefix}b"]
    for layer in report:
        assert layer.measures == pytest.approx(dict(expected[layer.name].measures), rel=0, nan_ok=True)
        assert layer.dtype == expected[layer.name].dtype
    assert report.coverage == expected.coverage
    tied = kind in ("pt", "lightning", "training_state", "old")
    assert report[f"{prefix}a"].aliases == ((f"{prefix}tied",) if tied else ())


def test_asking_for_a_name_reads_nothing(tmp_path: Path) -> None:
    """As with any mapping: `in` and `get`, also for a name that is not there."""
    save_file({"a.weight": torch.ones(20, 20)}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert "b.weight" not in checkpoint
    assert checkpoint.get("b.weight") is None
    with (tmp_path / "a.safetensors").open("rb+") as file:
        file.truncate(100)
    assert "a.weight" in checkpoint


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    """As `save_pretrained` writes it, in one file and in shards."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=20))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    whole, shards = (esdmon.analyze(tmp_path / name) for name in ("whole", "shards"))
    assert sorted(layer.name for layer in whole) == sorted(layer.name for layer in shards)
    assert len(whole) == 12  # q, k and v apart
    for layer in whole:
        assert shards[layer.name].measures == pytest.approx(dict(layer.measures), rel=0, nan_ok=True)


def truncated(write: Callable[[Path], Path], keep: int) -> Callable[[Path], Path]:
    def damage(folder: Path) -> Path:
        path = write(folder)
        path.write_bytes(path.read_bytes()[:keep])
        return path

    return damage


def with_bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def saved(name: str, content: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return write


def missing_shard(folder: Path) -> Path:
    as_shards(folder)
    (folder / "model-1.safetensors").unlink()
    return folder


def several(folder: Path) -> Path:
    as_pt(folder)
    as_lightning(folder)
    return folder


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.pt")
    return folder / "a.pt"


class Bomb:
    """What a hostile pickle holds: a call made on loading."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch exploded",)


class Tensors:
    """What a TensorDict is: made of its tensors, with each copy that is loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[dict[str, torch.Tensor]]]:
        return Tensors, ({"weight": torch.ones(9, 9)},)


def hostile_index(folder: Path) -> Path:
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
    return folder


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda folder: folder / "a.pt", "a.pt does not exist"),
    "an empty folder": (lambda folder: folder, "contains no checkpoint"),
    "an empty file": (with_bytes("a.pt", b""), "a.pt is empty"),
    "a text": (with_bytes("a.pt", b"weights to follow\n" * 9), "is truncated or not a torch checkpoint"),
    "another kind": (with_bytes("a.txt", "größe\n".encode()), "is a text file, without weights. Pass a .pt, .pth"),
    "words named as weights": (with_bytes("a.pt", b"hello"), "not a torch checkpoint: its bytes are not those of a"),
    "a run": (with_bytes("esdmon.jsonl", b"{}\n"), "without weights. If a run of esdmon wrote it, use esdmon report"),
    "a compressed run": (
        with_bytes("esdmon.jsonl.gz", gzip.compress(b"{}\n")),
        "is a compressed text file, without weights. If a run of esdmon wrote it, use esdmon report",
    ),
    "another compressed file": (with_bytes("a.pt.gz", gzip.compress(b"{}\n")), "is compressed by gzip: unpack it"),
    "binary data named as a run": (
        with_bytes("a.jsonl", bytes(range(200, 256)) * 40),
        "a.jsonl is binary data of an unknown kind. Pass a .pt, .pth",
    ),
    "a run under another name": (
        with_bytes("a.log", b'{"schema":1}\n'),
        "a.log is a text file, without weights. Pass a",
    ),
    "a text named as another kind": (
        with_bytes("a.onnx", b"to do\n"),
        "a.onnx is a text file, without weights. Pass a",
    ),
    "another kind by its name": (with_bytes("a.onnx", b"\x08\x07\x12\x07pytorch"), "a.onnx is an ONNX graph: save"),
    "the folder of a run": (
        lambda folder: with_bytes("esdmon.jsonl", b"{}\n")(folder).parent,
        "contains no checkpoint: neither a file of weights nor .metadata. It has the readings of a run, esdmon.jsonl",
    ),
    "a truncated zip": (truncated(as_pt, 3000), "is truncated or not a torch checkpoint"),
    "a truncated pickle": (truncated(as_old, 300), "is truncated or not a torch checkpoint"),
    "truncated safetensors": (truncated(as_safetensors, 400), "is truncated or not a safetensors file"),
    "no safetensors": (with_bytes("a.safetensors", b"x" * 99), "is truncated or not a safetensors file"),
    "only objects": (saved("a.pt", {"args": argparse.Namespace(lr=1)}), "contains no named tensors; its keys are args"),
    "a model without matrices": (saved("a.pt", nn.BatchNorm1d(9)), r"objects \(torch.nn.modules.batchnorm.BatchNorm1d"),
    "an object made of tensors": (saved("a.pt", {"model": Tensors()}), r"objects \(.*Tensors\)"),
    "a bomb": (saved("a.pt", {"w": Bomb()}), "refused: it contains Python objects"),
    "a bomb in an index": (hostile_index, "refused: its index contains posix.system"),
    "a damaged index": (with_bytes("model.safetensors.index.json", b"{}"), "has no weight_map"),
    "a missing shard": (missing_shard, "lists what does not exist: model-1.safetensors. Download it again"),
    "several checkpoints": (several, "contains 2 checkpoints. Pass one of them"),
    "vectors alone": (
        saved("a.pt", {"b": torch.ones(9)}),
        "/a.pt has no weight matrix to read: esdmon reads parameters",
    ),
    "a pipe": (pipe, "a.pt is a pipe or a device, but weights are read from any position of a file. Write it to a"),
    "an empty dict": (saved("a.pt", {}), "contains no named tensors, but an empty dict. Save the state_dict"),
    "a list": (saved("a.pt", [1, 2]), "contains no named tensors, but a list. Save the state_dict"),
    "no tensors": (saved("a.pt", {"epoch": 3}), "contains no named tensors; its keys are epoch"),
    "a truncated metadata": (with_bytes(".metadata", b"\x80\x04"), "not the index of a distributed checkpoint"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_gives_one_clear_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing in it has been run."""
    monkeypatch.chdir(tmp_path)
    make, message = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        esdmon.analyze(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


class Scripted(nn.Module):
    """A network that TorchScript compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(16, 32, 3)
        self.norm = nn.BatchNorm2d(32)
        self.recurrent = nn.LSTM(32, 20)
        self.head = nn.Sequential(nn.Linear(20, 30), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        states, _ = self.recurrent(self.norm(self.convolution(images)).mean((2, 3)))
        logits: Tensor = self.head(states)
        return logits


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", ["script", "trace", "frozen"])
def test_torchscript_is_read_as_its_state_dict(way: str, tmp_path: Path) -> None:
    """Its code is not touched; a frozen one has no names left."""
    model = Scripted().eval()
    trace: Any = torch.jit.trace
    program: Any = trace(model, torch.ones(2, 16, 8, 8)) if way == "trace" else torch.jit.script(model)
    (torch.jit.freeze(program) if way == "frozen" else program).save(tmp_path / "a.pt")
    if way == "frozen":
        with pytest.raises(InputError, match="is a program of TorchScript that is frozen, so that its weights have no"):
            open_checkpoint(tmp_path / "a.pt")
        return
    report, expected = esdmon.analyze(tmp_path / "a.pt"), esdmon.analyze(model.state_dict())
    assert {layer.name for layer in report} == {layer.name for layer in expected}
    for layer in report:
        assert dict(layer.measures) == pytest.approx(dict(expected[layer.name].measures), nan_ok=True)
    assert report.coverage.share == expected.coverage.share


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """What the system says, in one line."""
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        open_checkpoint(tmp_path / "a" / "b.pt")


def test_safetensors_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absence is one sentence with the way to get it."""
    path = as_safetensors(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r'needs the package safetensors: python -m pip install "esdmon\[scan\]"'):
        open_checkpoint(path)


def test_experts_and_kernels_are_distinguished_by_their_names() -> None:
    """A 3-D tensor of a mapping: slices along the first side for experts, along the last for a convolution."""
    shapes = {
        m.name: m.stack_shape()
        for m in discover({"experts.up": torch.ones(4, 30, 20), "conv.weight": torch.ones(30, 20, 4)}).matrices
    }
    assert shapes == {"experts.up": (4, 30, 20), "conv": (4, 30, 20)}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident set from /proc")
@pytest.mark.parametrize("kind", ["pt", "safetensors", "distributed"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_tensor_at_a_time_is_in_memory(kind: str, tmp_path: Path) -> None:
    """Five tensors of 48 MB: at its peak a scan holds less than three of them above what it started with."""
    paths = [tmp_path / f"{name}.{kind}" for name in ("small", "large")]
    # The small one first: libraries and their buffers are in memory before anything is measured.
    for path, rows, count in zip(paths, (6000, 98304), (1, 5), strict=True):
        tensors = {f"layer{i}.weight": torch.randn(rows, 128) for i in range(count)}
        if kind == "pt":
            torch.save(tensors, path)
        elif kind == "safetensors":
            save_file(tensors, path)
        else:
            save(tensors, checkpoint_id=path, no_dist=True)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE, *map(str, paths)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},  # glibc keeps up to 64 MB that was freed, otherwise
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) < 3 * 98304 * 128 * 4
