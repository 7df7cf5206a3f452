"""Programs of `torch.export` give what their modules give."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE
from torch.export.pt2_archive import PT2ArchiveWriter
from torch.export.pt2_archive._package import package_pt2

import esdmon
from esdmon.errors import InputError
from esdmon.weights import open_checkpoint
from esdmon.weights.checkpoint.exported import DTYPES
from tests.benchmarks.mutations import write_older_program

TABLE = "model/data/weights/model_weights_config.json"


class Tied(nn.Module):
    """A convolution, a statistic, and two layers that share a weight, which is a transpose."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.one = nn.Linear(16, 40, bias=False)
        self.two = nn.Linear(16, 40, bias=False)
        self.one.weight = self.two.weight = nn.Parameter(torch.randn(16, 40).t())

    def forward(self, x: Tensor) -> Any:
        """Use each layer."""
        pooled = self.norm(self.conv(x)).mean(dim=(2, 3))
        return self.one(pooled) + self.two(pooled)


def program(model: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), inputs)


@pytest.fixture
def tied() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # torch's, of a transpose
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_program_is_read_as_its_module(tied: Tied, tmp_path: Path, dtype: torch.dtype) -> None:
    """With convolutions, a tied weight and 16-bit numbers; nothing of the program is loaded."""
    tied.to(dtype)
    torch.export.save(program(tied, torch.zeros(1, 8, 6, 6, dtype=dtype)), tmp_path / "a.pt2")
    opened = open_checkpoint(tmp_path / "a.pt2")
    state = tied.state_dict()
    assert opened.keys() == state.keys()
    assert all(torch.equal(opened[name], weight) for name, weight in state.items())
    assert opened.outlines["one.weight"] is opened.outlines["two.weight"]
    expected = {layer.name: layer.measures for layer in esdmon.analyze(state)}
    assert {layer.name: layer.measures for layer in esdmon.analyze(tmp_path)} == expected


def test_a_package_of_several_programs(tmp_path: Path) -> None:
    """Their names come first."""
    encoder, decoder = nn.Linear(16, 32), nn.Linear(32, 16)
    programs = {"encoder": program(encoder, torch.zeros(1, 16)), "decoder": program(decoder, torch.zeros(1, 32))}
    package_pt2(tmp_path / "a.pt2", exported_programs=programs)
    opened = open_checkpoint(tmp_path / "a.pt2")
    assert set(opened) == {f"{model}.{name}" for model in programs for name in ("weight", "bias")}
    assert torch.equal(opened["decoder.weight"], decoder.weight)


def test_programs_of_earlier_versions(tied: Tied, tmp_path: Path) -> None:
    """They have a file of `torch.save` in them: beside others up to torch 2.7, in the folder of weights in 2.8."""
    state, file = tied.state_dict(), io.BytesIO()
    write_older_program(tmp_path / "2.7.pt2", state)
    torch.save(state, file)
    with PT2ArchiveWriter(str(tmp_path / "2.8.pt2")) as writer:
        writer.write_bytes("data/weights/model.pt", file.getvalue())
        writer.write_string("models/model.json", "{}")
    for name in ("2.7.pt2", "2.8.pt2"):
        opened = open_checkpoint(tmp_path / name)
        assert opened.keys() == state.keys()
        assert all(torch.equal(opened[each], weight) for each, weight in state.items())


class Marked(Tensor):
    """A tensor of a class of its own."""


def test_what_is_not_read_is_skipped(tmp_path: Path) -> None:
    """Tensors of classes are pickled; those of a program without numbers are empty."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 64))
    exported = program(model, torch.zeros(1, 16))
    exported.state_dict["0.weight"] = nn.Parameter(torch.randn(32, 16).as_subclass(Marked))
    torch.export.save(exported, tmp_path / "a.pt2")
    edit(tmp_path / "a.pt2", lambda table, records: records.update({block_of(table["1.weight"]): b""}))
    reasons = {layer.name: layer.reason for layer in esdmon.analyze(tmp_path / "a.pt2")}
    assert reasons["0"].startswith("a tensor of a class of its own")
    assert reasons["1"] == "the program of torch.export was saved without its numbers"


def block_of(entry: dict[str, Any]) -> str:
    return f"model/data/weights/{entry['path_name']}"


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], object]) -> None:
    """Change the table of the weights of a program, and its other files."""
    with zipfile.ZipFile(path) as archive:
        records = {name.replace(f"{path.stem}/", "model/", 1): archive.read(name) for name in archive.namelist()}
    table = json.loads(records[TABLE])
    change(table["config"], records)
    records[TABLE] = json.dumps(table).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_the_numbers_of_dtypes_are_those_of_torch() -> None:
    """All that torch writes are known."""
    assert {getattr(torch, name): number for number, name in DTYPES.items()} == _TORCH_TO_SERIALIZE_DTYPE


DAMAGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], object], str]] = {
    "a missing block": (lambda _, records: records.pop("model/data/weights/weight_0"), "is damaged: 'weight_0'"),
    "a short block": (lambda _, records: records.update({"model/data/weights/weight_0": bytes(8)}), "larger than its"),
    "a side that is no number": (
        lambda table, _: table["weight"]["tensor_meta"]["sizes"].append({"as_expr": "s0"}),
        "is damaged: 'as_int'",
    ),
    "an impossible side": (
        lambda table, _: table["weight"]["tensor_meta"].update(sizes=[{"as_int": -1}, {"as_int": 2}]),
        "an impossible shape",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_an_error(damage: str, tmp_path: Path) -> None:
    """With what is wrong in it."""
    change, message = DAMAGES[damage]
    torch.export.save(program(nn.Linear(16, 32), torch.zeros(1, 16)), tmp_path / "a.pt2")
    edit(tmp_path / "a.pt2", change)
    with pytest.raises(InputError, match=f"is truncated or not a torch checkpoint: .*{message}"):
        open_checkpoint(tmp_path / "a.pt2")


def test_a_part_of_a_large_file_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all that lies before it in the archive, for each tensor."""
    state = {f"{k}.weight": torch.randn(64, 64) for k in range(8)}
    write_older_program(tmp_path / "a.pt2", state)
    opened = open_checkpoint(tmp_path / "a.pt2")
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("reads through the archive"))
    assert torch.equal(opened["7.weight"], state["7.weight"])
