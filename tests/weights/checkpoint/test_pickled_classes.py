"""Classes of the user's own in a pickled model: each is read as it was, or the file is refused."""

import copy
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel
from transformers import LlamaConfig, LlamaForCausalLM

import esdmon
from esdmon.errors import InputError
from tests.benchmarks.same_as_module import close_to, readings

MEASURES = ("frobenius_norm", "stable_rank")


class OwnLinear(nn.Linear):
    """A layer that is recognised by its attributes alone."""


class OwnBilinear(nn.Bilinear):
    """Another one."""


class OwnScales(nn.RMSNorm):
    """Another one."""


class OwnParallel(nn.DataParallel[nn.Module]):
    """A wrapper that is looked through."""


class OwnAverage(AveragedModel):
    """Another one."""


class OwnPruning(prune.BasePruningMethod):
    """A way of pruning."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return a mask."""
        del t
        return torch.tril(default_mask)


class Slotted(nn.Module):
    """A module that is pickled with its slots beside its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(30, 20)

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the pickle module does for a class with slots."""
        return vars(self), {"slot": 3}


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))


def named_like_norms() -> nn.Module:
    layers = {"final_norm": OwnLinear(30, 20), "bilinear": OwnBilinear(11, 12, 13), "scales": OwnScales((16, 16))}
    return nn.ModuleDict({**layers, "pruned": nn.Linear(30, 20), "spectral": spectral_norm(OwnLinear(30, 20)).eval()})


def pruned() -> nn.Module:
    model = named_like_norms()
    OwnPruning.apply(model["pruned"], "weight")  # type: ignore[index, no-untyped-call]
    return model


def with_a_compiled_part() -> nn.Module:
    model = small()
    model[0] = torch.compile(model[0])  # type: ignore[assignment]
    return model


def adapted() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, num_attention_heads=4, **sizes))
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted


MODELS: dict[str, Callable[[], nn.Module]] = {
    "derived layers": pruned,
    "a derived DataParallel": lambda: OwnParallel(small()),
    "a derived average": lambda: OwnAverage(small()),
    "slots": lambda: nn.Sequential(Slotted(), nn.Linear(20, 10)),
    "a compiled part": with_a_compiled_part,
    "adapters": adapted,
    "a sparse weight": lambda: nn.ParameterList([torch.randn(20, 30), torch.eye(30).to_sparse()]),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.compile, norms, and peft
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_read_as_it_was(kind: str, tmp_path: Path) -> None:
    """Its names, shapes, types, numbers, and what is left out of it with which reason."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    torch.save(model, tmp_path / "model.pt")
    found = readings(tmp_path / "model.pt", MEASURES)
    assert found == {name: close_to(reading) for name, reading in readings(model, MEASURES).items()}
    here, there = (esdmon.analyze(each, measures=MEASURES) for each in (model, tmp_path / "model.pt"))
    assert [(layer.name, layer.aliases, layer.reason) for layer in here] == [
        (layer.name, layer.aliases, layer.reason) for layer in there
    ]
    assert here.coverage == there.coverage


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_sum_of_adapters_is_left_to_peft(tmp_path: Path) -> None:
    """It is computed by a method."""
    torch.save(adapted(), tmp_path / "model.pt")
    (layer,) = esdmon.analyze(tmp_path / "model.pt", layers="*/merged")
    assert (layer.status, "code of peft" in layer.reason) == ("skipped", True)


class KeepsOtherwise(nn.Module):
    """A module that is pickled as something else than its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(30, 20)

    def __reduce__(self) -> tuple[object, ...]:
        """Return a call, and a state that `__setstate__` would take."""
        return KeepsOtherwise, (), {"weights": self.inner.weight}


class Agent:
    """An object that is made from its model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __reduce__(self) -> tuple[object, ...]:
        """Return a call with the model."""
        return Agent, (self.model,)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_models_of_several_objects_are_read(count: int, tmp_path: Path) -> None:
    """However many there are."""
    (tmp_path / "agents.pkl").write_bytes(pickle.dumps([Agent(small()) for _ in range(count)]))
    assert len(esdmon.analyze(tmp_path / "agents.pkl", measures=MEASURES)) == 2 * count


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    """Else one of them would be missing, and nothing would say so."""
    torch.save({"a.b": small(), "a": {"b": small()}, "c": small()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt contains two modules named 'a\.b'"):
        esdmon.analyze(tmp_path / "model.pt", measures=MEASURES)


class Packed(nn.Module):
    """A module with a parameter that is something else than a tensor in the pickle."""

    def __reduce__(self) -> tuple[object, ...]:
        """Return a state with such a parameter."""
        hidden = KeepsOtherwise()
        return object, (), vars(self) | {"_parameters": {"weight": hidden}}


@pytest.mark.parametrize(
    ("part", "what"),
    [(KeepsOtherwise, "KeepsOtherwise can find the weights of a module"), (Packed, "KeepsOtherwise .* of a parameter")],
)
@pytest.mark.parametrize("content", ["one", "two"])
def test_what_only_its_own_code_finds_is_refused(
    content: str, part: Callable[[], nn.Module], what: str, tmp_path: Path
) -> None:
    """Else the rest would be read, and nothing would say that a part is missing."""
    contents = {"one": {"model": nn.Sequential(part(), small())}, "two": {"G": nn.Sequential(part()), "D": small()}}
    torch.save(contents[content], tmp_path / "model.pt")
    with pytest.raises(InputError, match=f"{what}.*Save the model's state_dict"):
        esdmon.analyze(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers(tmp_path: Path) -> None:
    """They have no weights yet."""
    torch.save(nn.Sequential(nn.LazyLinear(20), nn.Linear(20, 30)), tmp_path / "model.pt")
    with pytest.raises(InputError, match="lazy layers without weights: run one batch through the model"):
        esdmon.analyze(tmp_path / "model.pt")


def nested_in_itself() -> nn.Module:
    model = small()
    model.append(nn.Sequential())
    model[3].register_module("again", model)
    return model


def shared_at_each_level() -> nn.Module:
    model: nn.Module = nn.Linear(30, 20)
    for _ in range(40):
        model = nn.ModuleList([model, model])
    return model


@pytest.mark.parametrize(
    ("make", "what"),
    [(nested_in_itself, "contains itself"), (shared_at_each_level, "shares modules under too many names")],
)
def test_modules_whose_names_have_no_end(make: Callable[[], nn.Module], what: str, tmp_path: Path) -> None:
    """A small file would take all time or memory."""
    torch.save(make(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=what):
        esdmon.analyze(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("attribute", "value"), [("dim", 1), ("dim", None), ("dim", 7), ("name", "bias")])
def test_a_weight_norm_of_impossible_sides(attribute: str, value: object, tmp_path: Path) -> None:
    """The kernel of torch that multiplies it does not check them, and writes outside its memory."""
    layer = weight_norm(nn.Linear(24, 12))
    (hook,) = layer._forward_pre_hooks.values()
    setattr(hook, attribute, value)
    torch.save(layer, tmp_path / "model.pt")
    with pytest.raises(InputError, match="a weight norm in it has impossible sides"):
        esdmon.analyze(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_hook_without_a_name(tmp_path: Path) -> None:
    """It computes nothing then."""
    layer = spectral_norm(nn.Linear(24, 12))
    (hook,) = layer._forward_pre_hooks.values()
    hook.name = None  # type: ignore[attr-defined]
    torch.save(layer, tmp_path / "model.pt")
    assert {reading["status"] for reading in readings(tmp_path / "model.pt", MEASURES).values()} == {"ok"}


def test_an_attribute_with_shared_lists(tmp_path: Path) -> None:
    """It is converted once for each list, and not once for each of its names, of which there are 10¹²."""
    model = small()
    shared: Any = 0
    for _ in range(6):
        shared = [shared] * 100
    model.shared = shared
    torch.save(model, tmp_path / "model.pt")
    assert len(esdmon.analyze(tmp_path / "model.pt", measures=MEASURES)) == 2


def test_records_that_overlap(tmp_path: Path) -> None:
    """Many storages could be the same bytes, each in memory for itself."""
    torch.save(small(), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        first = next(record for record in archive.infolist() if record.filename.endswith("data/0"))
        for key in range(100, 200):
            again = copy.copy(first)
            again.filename = f"{first.filename[:-1]}{key}"
            archive.filelist.append(again)
        archive.comment = b"so that the list is written"
    with pytest.raises(InputError, match="its records overlap"):
        esdmon.analyze(tmp_path / "model.pt")


class TwiceStored:
    """A storage that the pickle holds once, and names twice."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[object, ...]:
        """Return the call for the storage."""
        return torch.storage._load_from_bytes, (self.data,)


def test_a_storage_that_is_named_twice(tmp_path: Path) -> None:
    """Each time it would be in memory once more."""
    _, (data,) = torch.randn(40, 30).untyped_storage().__reduce__()  # type: ignore[no-untyped-call]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([TwiceStored(data), TwiceStored(data)]))
    with pytest.raises(InputError, match="its storages are larger than the file"):
        esdmon.analyze(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "model.bin"])
def test_a_pickle_is_one_by_its_content(name: str, protocol: int, tmp_path: Path) -> None:
    """Whatever its name, and in a folder where the name is that of weights."""
    model = small()
    (tmp_path / name).write_bytes(pickle.dumps(model, protocol))
    expected = {key: close_to(reading) for key, reading in readings(model, MEASURES).items()}
    assert readings(tmp_path / name, MEASURES) == expected
    assert name.endswith(".pkl") or readings(tmp_path, MEASURES) == expected
