"""Models that were pickled whole: `torch.save(model)`, and what trainers save with a model in it."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import cloudpickle
import joblib
import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import esdmon
from esdmon.errors import InputError
from tests.benchmarks.same_as_module import close_to, readings

MEASURES = ("frobenius_norm", "stable_rank")
ran: list[str] = []
"""What code of a file has run."""


class OwnConvolution(nn.Conv2d):
    """A class of the user's own, which must not be imported to read it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Run when torch loads it."""
        ran.append("__setstate__")
        super().__setstate__(state)  # type: ignore[no-untyped-call]


class OwnTransposed(nn.ConvTranspose1d):
    """Another one."""


class OwnEmbedding(nn.Embedding):
    """Another one."""


class OwnRecurrent(nn.GRU):
    """Another one."""


class OwnAttention(nn.MultiheadAttention):
    """Another one."""


class OwnNorm(nn.LayerNorm):
    """Another one."""


class OwnBlock(nn.Module):
    """A module with a parameter, a buffer, a shared layer, and other attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(40, 50))
        self.register_buffer("mask", torch.ones(64, 64))
        self.first = nn.Linear(50, 40)
        self.again = self.first
        self.listed = [self.first]
        self.activation = torch.relu
        self.named_parameters_of = {"groups": 3}


def derived() -> nn.Module:
    return nn.ModuleDict(
        {
            "convolution": OwnConvolution(16, 32, 3, groups=4),
            "transposed": OwnTransposed(24, 32, 5, groups=2),
            "embedding": OwnEmbedding(100, 20),
            "recurrent": OwnRecurrent(20, 30),
            "attention": OwnAttention(32, 4),
            "norm": OwnNorm((16, 16)),
            "block": OwnBlock(),
        }
    )


def computed() -> nn.Module:
    model = nn.Sequential(
        weight_norm(nn.Linear(40, 30)),
        spectral_norm(nn.Conv2d(16, 24, 3)),
        prune.l1_unstructured(nn.Linear(40, 30), "weight", 0.5),  # type: ignore[no-untyped-call]
    )
    return model.eval()


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the older weight_norm
@pytest.mark.parametrize("make", [derived, computed, OwnBlock])
@pytest.mark.parametrize("is_new_layout", [True, False])
def test_a_model_is_read_as_it_was(make: Callable[[], nn.Module], *, is_new_layout: bool, tmp_path: Path) -> None:
    """Classes derived from a layer of torch, weights that hooks compute, names of parameters and of shared layers."""
    torch.manual_seed(0)
    model = make()
    torch.save(model, tmp_path / "model.pt", _use_new_zipfile_serialization=is_new_layout)
    ran.clear()
    found = readings(tmp_path / "model.pt", "default")
    assert found == {name: close_to(reading) for name, reading in readings(model, "default").items()}
    assert ran == []
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert ran == (["__setstate__"] if make is derived else [])  # the code was there to be run
    here, there = (esdmon.analyze(each) for each in (model, tmp_path / "model.pt"))
    assert [layer.aliases for layer in here] == [layer.aliases for layer in there]
    assert here.coverage == there.coverage


def test_a_class_that_is_in_the_file(tmp_path: Path) -> None:
    """As cloudpickle writes one that cannot be imported, for MLflow."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = OwnBlock()

    torch.save(Local(), tmp_path / "model.pth", pickle_module=cloudpickle)
    assert [layer.name for layer in esdmon.analyze(tmp_path / "model.pth")] == ["inner.mixing", "inner.first"]


class Trainer:
    """What keeps a model in an attribute."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())
        self.losses = [torch.ones(3)]


def after_a_step() -> dict[str, object]:
    model = small()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 40)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "epoch": 3, "loss": nn.CrossEntropyLoss(torch.ones(20))}


def with_copy() -> dict[str, object]:
    model = small()
    return {"model": model, "ema": copy.deepcopy(model), "best": model}


def with_its_state() -> dict[str, object]:
    model = small()
    return {"model": model, "state_dict": model.state_dict()}


def tied() -> nn.Module:
    model = nn.ModuleDict({"body": nn.Linear(40, 40), "head": nn.Linear(40, 40)})
    cast("nn.Linear", model["head"]).weight = cast("nn.Linear", model["body"]).weight
    return model


PLAIN = ["0", "2"]
PLACES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "in a wrapper": (lambda: nn.DataParallel(small()), PLAIN),
    "averaged": (lambda: AveragedModel(small()), PLAIN),
    "compiled": (lambda: torch.compile(small()), PLAIN),
    "traced": (lambda: torch.fx.symbolic_trace(small()), PLAIN),
    "with its optimizer": (after_a_step, PLAIN),
    "with a copy": (with_copy, [*PLAIN, "ema.0", "ema.2"]),
    "the copy alone": (lambda: {"model": None, "ema": small()}, ["ema.0", "ema.2"]),
    "two models": (lambda: {"G": small(), "D": small(), "step": 3}, ["G.0", "G.2", "D.0", "D.2"]),
    "in an object": (lambda: Trainer(small()), PLAIN),
    "beside a state dict of other names": (
        lambda: {"state_dict": {"first": torch.ones(40, 30)}, "hyper_parameters": {"net": small()}},
        ["first"],
    ),
    "beside a state dict": (lambda: {"state_dict": small().state_dict(), "hyper_parameters": {"net": small()}}, PLAIN),
    "with the state of a copy": (lambda: {"net": small(), "ema": small().state_dict()}, [*PLAIN, "ema.0", "ema.2"]),
    "the copy of a state dict": (lambda: {"model": small().state_dict(), "ema": small()}, [*PLAIN, "ema.0", "ema.2"]),
    "with its own state": (with_its_state, PLAIN),
    "one part of two": (lambda: {"model": {"a": small(), "b": small().state_dict()}}, ["b.0", "b.2", "a.0", "a.2"]),
    "compiled, in a state": (lambda: {"model": torch.compile(small()), "epoch": 3}, PLAIN),
    "beside a tensor": (lambda: {"G": small(), "noise": torch.randn(20, 30)}, ["G.0", "G.2"]),
    "beside usual keys": (lambda: {"weights": {"class": torch.ones(20, 30)}, "net": small()}, PLAIN),
    "in an object beside a loss": (lambda: {"trainer": Trainer(small()), "loss": nn.CrossEntropyLoss()}, PLAIN),
    "in an object and beside": (
        lambda: {"t": Trainer(small()), "D": small()},
        ["t.model.0", "t.model.2", "D.0", "D.2"],
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile
@pytest.mark.parametrize("place", PLACES)
def test_where_the_model_is_in_a_file(place: str, tmp_path: Path) -> None:
    """Its names are those in the model, others have their key before theirs; a state dict of a model comes first."""
    make, names = PLACES[place]
    torch.save(make(), tmp_path / "best.pt")
    found = readings(tmp_path / "best.pt", MEASURES)
    assert list(found) == names
    assert {reading["status"] for reading in found.values()} == {"ok"}
    assert readings(tmp_path, MEASURES) == found


@pytest.mark.parametrize("dump", [pickle.dump, joblib.dump])
@pytest.mark.parametrize(
    "make", [OwnBlock, small, lambda: small().state_dict(), tied, lambda: {"epoch": 3, "net": small()}]
)
def test_files_that_torch_did_not_write(
    dump: Callable[[object, BinaryIO], None], make: Callable[[], object], tmp_path: Path
) -> None:
    """The storages are in the pickle, each in one of its own."""
    content = make()
    with (tmp_path / "model.pkl").open("wb") as file:
        dump(content, file)
    torch.save(content, tmp_path / "model.pt")
    found = readings(tmp_path / "model.pkl", "default")
    assert found == {name: close_to(reading) for name, reading in readings(tmp_path / "model.pt", "default").items()}


class Estimator:
    """What pickles its model into a byte string, as skorch does."""

    def __getstate__(self) -> dict[str, object]:
        """Return its attributes."""
        return {"lr": 0.1, "inside": pickle.dumps({"module_": small(), "optimizer_": None})}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (Estimator(), PLAIN),
        ({"estimator": Estimator(), "losses": Trainer(small()).losses}, PLAIN),
        ([Estimator(), Estimator()], ["0.module_.0", "0.module_.2", "1.module_.0", "1.module_.2"]),
    ],
)
def test_a_pickle_in_a_pickle(content: object, names: list[str], tmp_path: Path) -> None:
    """The names are those in the model; of several estimators all are read."""
    (tmp_path / "estimator.pkl").write_bytes(pickle.dumps(content))
    assert [layer.name for layer in esdmon.analyze(tmp_path / "estimator.pkl", measures=MEASURES)] == names


def test_a_folder_is_not_opened_for_a_pickle(tmp_path: Path) -> None:
    """Beside weights it is something else."""
    torch.save(small(), tmp_path / "model.pt")
    (tmp_path / "vocabulary.pkl").write_bytes(pickle.dumps(["a", "b"]))
    assert len(esdmon.analyze(tmp_path)) == 2
    with pytest.raises(InputError, match=r"vocabulary.pkl contains no named tensors"):
        esdmon.analyze(tmp_path / "vocabulary.pkl")


def test_a_layer_without_numbers_is_skipped(tmp_path: Path) -> None:
    """The others are read."""
    torch.save(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20, device="meta")), tmp_path / "a.pt")
    first, second = esdmon.analyze(tmp_path / "a.pt")
    assert (first.status, second.status) == ("ok", "skipped")
    assert "meta" in second.reason


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore::DeprecationWarning")
def test_what_is_no_parameter_of_a_module_is_refused(tmp_path: Path) -> None:
    """Weights that torch has quantised and packed; the rest of the model would be read without them."""
    model = nn.Sequential(nn.Linear(40, 30), nn.Conv1d(30, 20, 3))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})  # type: ignore[no-untyped-call]
    torch.save(quantized, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"it contains Python objects .* Save the model's state_dict\(\) alone"):
        esdmon.analyze(tmp_path / "a.pt")


def explode() -> None:
    """Note that code of a file has run."""
    ran.append("explode")


class Exploding:
    """A call made on loading."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Return the call."""
        return explode, ()


class Hostile(nn.Linear):
    """A layer with attributes that have the names of methods, a call in the place of a weight, and odd children."""

    def __reduce__(self) -> tuple[object, ...]:
        """Return a state that no layer has."""
        state = vars(self) | {"named_parameters": 3, "parameters": None, "__class__": "int", "training": Exploding()}
        parameters = state["_parameters"] | {"bias": Exploding(), "a.b": torch.ones(30, 20), "": torch.ones(3)}
        return (
            Exploding,
            (),
            state | {"_modules": {"": nn.Linear(30, 20), "a.b": "no module"}, "_parameters": parameters},
        )


def test_a_hostile_module_does_nothing(tmp_path: Path) -> None:
    """Neither code that it names nor attributes with the names of methods have an effect."""
    torch.save(nn.Sequential(Hostile(40, 30)), tmp_path / "a.pt")
    ran.clear()
    report = esdmon.analyze(tmp_path / "a.pt")
    assert {layer.name for layer in report} == {"0", "0.a.b", "0."}
    assert {layer.status for layer in report} == {"ok"}
    assert ran == []
