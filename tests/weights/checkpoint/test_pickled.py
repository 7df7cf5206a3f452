"""The pickle in a checkpoint is data: whatever it names, nothing is imported, made or called."""

import argparse
import collections
import contextlib
import datetime as dt
import io
import pathlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import esdmon
from esdmon.errors import InputError
from esdmon.weights import open_checkpoint
from esdmon.weights.checkpoint.pickled import PickleError, parse

calls: list[str] = []


class Spy:
    """What would note that it is made."""

    def __init__(self) -> None:
        self.weight = 1

    def __setstate__(self, _: object) -> None:
        calls.append("made")

    def __reduce__(self) -> tuple[Any, ...]:
        return calls.append, ("called",), {"weight": 1}


BESIDE: dict[str, object] = {
    "a numpy scalar": np.float64(0.9),
    "an array": np.arange(3.0),
    "arguments": argparse.Namespace(lr=1),
    "a path": pathlib.Path("/x"),
    "a defaultdict": collections.defaultdict(dict, a={}),
    "a counter": collections.Counter([30]),
    "a date": dt.datetime(2025, 1, 1),  # noqa: DTZ001
    "sets": {frozenset({1}), 2},
    "others": [torch.float16, torch.device("cpu"), torch.Size([1]), 1j, ..., bytearray(b"x"), float],
    "an object of a user": Spy(),
    "the state of numpy's generator": np.random.default_rng(0),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_is_saved_beside_the_weights_is_read_past(kind: str, layout: str, protocol: int, tmp_path: Path) -> None:
    """In either layout of torch.save and any protocol; the module of a class need not exist."""
    calls.clear()
    weight = torch.randn(20, 30)
    content = {"extra": BESIDE[kind], "state_dict": {"fc.weight": weight}}
    zipped = layout == "zip"
    torch.save(content, tmp_path / "a", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    loaded = set(sys.modules)
    checkpoint = open_checkpoint(tmp_path / "a")
    assert list(checkpoint) == ["fc.weight"]
    assert torch.equal(checkpoint["fc.weight"], weight)
    assert calls == []
    assert set(sys.modules) == loaded


class Settings(dict[str, Any]):
    """A dictionary with another class, as easydict, addict and mmengine have them."""


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": Settings({"fc.weight": torch.ones(20, 30)})},
        Settings(epoch=3, net={"fc.weight": torch.ones(20, 30)}),
    ],
)
def test_a_dictionary_of_another_class_is_one(content: dict[str, Any], layout: str, tmp_path: Path) -> None:
    """Inside, and as all that is saved."""
    torch.save(content, tmp_path / "a", _use_new_zipfile_serialization=layout == "zip")
    assert list(open_checkpoint(tmp_path / "a")) == ["fc.weight"]


TENSORS = {
    "transposed": torch.arange(600.0).reshape(20, 30).T,
    "every second": torch.arange(600.0).reshape(20, 30)[:, ::2],
    "one number": torch.tensor([[0.5]]).expand(20, 30),
    "bfloat16": torch.randn(20, 30).bfloat16(),
    "float8": torch.randn(20, 30).to(torch.float8_e4m3fn),
    "complex": torch.randn(20, 30, dtype=torch.complex64),
    "parameter": torch.nn.Parameter(torch.randn(20, 30)),
    "booleans": torch.rand(20, 30) > 0.5,
    "empty": torch.empty(0, 30),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_are_those_that_torch_would_load(kind: str, tmp_path: Path) -> None:
    """By offset, shape, strides and dtype."""
    torch.save({"w": TENSORS[kind]}, tmp_path / "a.pt")
    read = open_checkpoint(tmp_path / "a.pt")["w"]
    assert read.dtype == TENSORS[kind].dtype
    assert torch.equal(read.float() if kind == "float8" else read, plain(TENSORS[kind], kind))


def plain(tensor: Tensor, kind: str) -> Tensor:
    return tensor.detach().float() if kind == "float8" else tensor.detach()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.Popen", "builtins.__import__", "pty.spawn"])
def test_a_pickle_that_names_code_is_refused(name: str) -> None:
    """Also where nothing calls it."""
    module, _, function = name.rpartition(".")
    with pytest.raises(PickleError, match=name):
        parse(io.BytesIO(f"c{module}\n{function}\n.".encode()), {})


def test_a_pickle_that_holds_itself_is_no_endless_task(tmp_path: Path) -> None:
    """And one of many small lists in each other is walked once."""
    itself: dict[str, Any] = {"x": 1, "fc.weight": torch.ones(20, 20)}
    itself["model"] = itself
    nested: list[Any] = []
    for _ in range(200):
        nested = [nested, nested]
    itself["nested"] = nested
    torch.save(itself, tmp_path / "a.pt")
    assert "fc" in [layer.name for layer in esdmon.analyze(tmp_path / "a.pt")]


@pytest.mark.parametrize(
    "damage", [b"\x80\x02r\xff\xff\xff\xff.", b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", b"(R."]
)
def test_a_damaged_pickle_is_an_error_of_ours(damage: bytes) -> None:
    """Numbers in it allocate nothing."""
    with pytest.raises(PickleError, match=r"."):
        parse(io.BytesIO(damage), {})


def test_a_tensor_that_claims_more_than_its_storage_is_refused(tmp_path: Path) -> None:
    """A size that was edited would read other memory, or need all of it."""
    torch.save({"w": torch.ones(100, 30)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    edited = content.replace(b"KdK\x1e\x86", b"K\xffK\x1e\x86")
    assert edited != content
    (tmp_path / "a.pt").write_bytes(edited)
    with pytest.raises(InputError, match="larger than its storage"):
        open_checkpoint(tmp_path / "a.pt")


def test_pickle_is_the_oracle_of_plain_data() -> None:
    """Containers and numbers come out as pickle gives them, in every protocol."""
    content: dict[Any, Any] = {"a": [1, -(2**70), 2.5, None, True], "b": ("x", b"y", {}), 3: {"c": [[], ()]}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        if protocol > 2:  # before, bytes are made by a call
            assert parse(io.BytesIO(pickle.dumps(content, protocol)), {}) == content


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_every_damaged_file_is_an_error_of_ours(zipped: object, tmp_path: Path) -> None:
    """One byte changed anywhere that matters: the file is read, or refused in one line."""
    torch.save({"w": torch.ones(12, 11)}, tmp_path / "a.pt", _use_new_zipfile_serialization=bool(zipped))
    content = (tmp_path / "a.pt").read_bytes()
    generator = np.random.default_rng(0)
    places = [*range(0, len(content), 23), *range(len(content) - 300, len(content), 5)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] = generator.integers(256)
        (tmp_path / "b.pt").write_bytes(damaged)
        with contextlib.suppress(InputError):
            esdmon.analyze(tmp_path / "b.pt", measures=["lambda_max"])
