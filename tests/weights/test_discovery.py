from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

from esdmon.errors import InputError
from esdmon.weights import Selection, discover, read_spectrum

PARAMETRISATIONS = [parametrizations.spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal]


class Shared(nn.Module):
    """Two linear layers with one weight, a convolution inside a block, and what has no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 20)
        self.second = nn.Linear(20, 20)
        self.second.weight = self.first.weight
        self.block = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
        self.table = nn.Embedding(50, 20)


def test_each_matrix_once_under_its_first_name() -> None:
    """A shared weight is read once; the rest of the parameters is accounted for."""
    model = Shared()
    watched = discover(model)
    assert [matrix.name for matrix in watched.matrices] == ["first", "block.0"]
    assert watched.coverage.watched == 20 * 20 + 16 * 3 * 9
    assert watched.coverage.total == sum(parameter.numel() for parameter in model.parameters())
    reasons = {skip.name: skip.reason for skip in watched.coverage.skipped}
    assert reasons["table.weight"] == "embeddings are read on request: name them in layers="
    assert reasons["first.bias"] == reasons["block.1.weight"] == "vectors"


def test_a_model_that_is_a_layer_has_a_name() -> None:
    """A lone module has no name of its own, so it takes its class's."""
    assert [matrix.name for matrix in discover(nn.Linear(10, 20)).matrices] == ["Linear"]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, on importing its compiler
def test_compiled_models_keep_their_names() -> None:
    """The wrapper of torch.compile is looked through, by its type."""
    model = nn.Sequential(nn.Linear(10, 20))
    compiled: Any = torch.compile(model)
    for wrapped in (compiled, nn.DataParallel(model)):
        assert [matrix.name for matrix in discover(wrapped).matrices] == ["0"]


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
@pytest.mark.filterwarnings("ignore")  # the packages warn of their own dependencies
def test_models_that_fabric_has_set_up_keep_their_names(package: str) -> None:
    """In both packages of Lightning."""
    fabric = pytest.importorskip(package).Fabric(accelerator="cpu", devices=1)
    model = nn.Sequential(nn.Linear(10, 20))
    wrapped, _ = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [matrix.name for matrix in discover(wrapped).matrices] == ["0"]


def test_a_module_called_module_is_no_wrapper() -> None:
    """Names are never cut by their spelling."""
    model = nn.ModuleDict({"module": nn.Linear(10, 20)})
    assert [matrix.name for matrix in discover(model).matrices] == ["module"]


def test_mappings_are_read_by_their_shapes() -> None:
    """A state dict: 2-D as linear, 4-D as convolutions, the rest skipped."""
    weights = {"a.weight": torch.ones(12, 30), "b.weight": torch.ones(8, 4, 3, 3), "a.bias": torch.ones(12)}
    watched = discover(weights)
    assert [matrix.name for matrix in watched.matrices] == ["a", "b"]
    assert [skip.name for skip in watched.coverage.skipped] == ["a.bias"]


class Positioned(nn.Module):
    """A parameter of its own beside a layer, as vision transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.ones(20, 30))
        self.fc = nn.Linear(20, 20)


def test_a_parameter_of_the_model_itself_has_its_own_name() -> None:
    """As `named_parameters()` says, so that a pattern on that finds it."""
    watched = discover(Positioned(), selection=Selection(layers=["pos"]))
    assert [matrix.name for matrix in watched.matrices] == ["pos"]
    assert [skip.name for skip in watched.coverage.skipped] == ["fc.weight", "fc.bias"]


def test_layers_selects_by_pattern() -> None:
    """What was left out says so."""
    watched = discover(Shared(), selection=Selection(layers=["block.*"]))
    assert [matrix.name for matrix in watched.matrices] == ["block.0"]
    assert {skip.name: skip.reason for skip in watched.coverage.skipped}["first.weight"] == "left out by layers="


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("frist", r"layers='frist' matches no layer. Did you mean 'first'\?"),
        ("zzz.*", "The layers are: first, block.0."),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern: str, message: str) -> None:
    """A typo raises before training."""
    with pytest.raises(InputError, match=message):
        discover(Shared(), selection=Selection(layers=["first", pattern]))


@pytest.mark.parametrize(
    "kind", [parametrizations.spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal]
)
def test_parametrised_weights_are_read_as_they_act_and_left_as_they_are(kind: Any) -> None:
    """The effective weight, in training mode too, without moving the state behind it; its parameters count."""
    torch.manual_seed(0)
    model = nn.Sequential(kind(nn.Linear(20, 20)), nn.Linear(20, 20)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watched = discover(model)
    assert [matrix.name for matrix in watched.matrices] == ["0", "1"]
    spectrum = read_spectrum(watched.matrices[0], precision="exact")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    model.eval()
    expected = torch.linalg.svdvals(model.get_submodule("0").weight.detach().double()) ** 2 / 20  # type: ignore[operator]
    assert np.allclose(spectrum.eigenvalues, np.sort(expected.numpy()), rtol=1e-9)
    assert {skip.reason for skip in watched.coverage.skipped} == {"vectors"}


def test_embeddings_are_read_on_request() -> None:
    """Named in layers=, and not by default."""
    assert [matrix.name for matrix in discover(Shared(), selection=Selection(layers=["table"])).matrices] == ["table"]


class Own(nn.Module):
    """A layer that nobody knows: a 2-D weight, another 2-D parameter, and one of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(12, 30))
        self.mixing = nn.Parameter(torch.ones(12, 12))
        self.experts = nn.Parameter(torch.ones(3, 12, 12))


def test_a_layer_of_the_users_own_is_found_by_its_parameters() -> None:
    """Each 2-D parameter is a matrix; what is not read is named."""
    watched = discover(nn.ModuleDict({"own": Own()}))
    assert [matrix.name for matrix in watched.matrices] == ["own", "own.mixing"]
    (skipped,) = watched.coverage.skipped
    assert (skipped.name, skipped.reason) == (
        "own.experts",
        "3-D parameters of unknown layout, which a plugin can read",
    )


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, on importing its compiler
def test_wrappers_inside_a_model_do_not_show_in_its_names() -> None:
    """A compiled block in the middle, and a checkpointed one: names, and the coverage, are the author's."""
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(20, 20)))
    model = nn.ModuleDict({"a": compiled, "b": checkpoint_wrapper(nn.Linear(20, 20))})
    watched = discover(model)
    assert [matrix.name for matrix in watched.matrices] == ["a.0", "b"]
    assert [skip.name for skip in watched.coverage.skipped] == ["a.0.bias", "b.bias"]
    assert watched.coverage.total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU()), "Sequential has no weight matrix to read"),
        ({}, "dict has no weight matrix to read"),
        ({"a": [1, 2]}, "'a' is a list: a model is an nn.Module or a mapping"),
        ({"a": np.ones((20, 20))}, r"'a' is a ndarray: .* Convert arrays by torch\.as_tensor\(\)"),
        (7, "model must be an nn.Module, a mapping of names to tensors, or a path; got int"),
    ],
    ids=["no matrices", "empty", "no tensors", "arrays", "path"],
)
def test_what_is_no_model_is_refused(model: nn.Module | dict[str, Tensor], message: str) -> None:
    """One sentence, whatever was given."""
    with pytest.raises(InputError, match=message):
        discover(model)


def test_an_object_with_a_model_in_it_is_refused_with_its_place() -> None:
    """As forecasters, Trainers and pipelines have it; a list of modules is to be joined."""
    owner = SimpleNamespace(head="lr", body=nn.Linear(16, 24), models=[nn.Linear(16, 24)], _cache=nn.Linear(16, 24))
    with pytest.raises(
        InputError, match=r"got SimpleNamespace\. Pass one of the modules in it: \.body, \.models\[0\]$"
    ):
        discover(owner)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got list\. Join its modules in an nn\.ModuleDict$"):
        discover([nn.Linear(16, 24), nn.Linear(24, 16)])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got list\. Give the module in it, \[0\]$"):
        discover([nn.Linear(16, 24)])  # type: ignore[arg-type]  # as Megatron has its model chunks
    with pytest.raises(InputError, match=r"'a' is a Linear: .* tensors\. Join its modules in an nn\.ModuleDict$"):
        discover({"a": nn.Linear(16, 24)})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"got generator\. Give the module itself, not its parameters\(\)$"):
        discover(nn.Linear(16, 24).parameters())  # type: ignore[arg-type]


def test_the_aliases_of_a_weight_of_the_model_itself() -> None:
    """It has the name of the class; a layer inside that shares it has its own."""
    model = nn.Linear(16, 24)
    model.inner = nn.Linear(16, 24)  # a child of a layer
    model.inner.weight = model.weight
    (matrix,) = discover(model, selection=Selection(min_eigenvalues=1)).matrices
    assert (matrix.name, matrix.aliases) == ("Linear", ("inner",))


def test_a_module_that_has_its_parent_as_a_child_is_read() -> None:
    """`self.parent = parent` registers the parent; such a model trains, as its `parameters()` ends."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[0].parent = model
    assert [matrix.name for matrix in discover(model).matrices] == ["0", "1"]


def test_a_name_can_be_written_to_every_file() -> None:
    """Without the lone surrogates of names of files that are not UTF-8, after which a module may be named."""
    model = nn.ModuleDict({"caf\udce9": nn.Linear(64, 64)})
    assert [matrix.name for matrix in discover(model).matrices] == [r"caf\udce9"]
