"""Weights that are not what their layer says, and modules that cannot be looked into: left out, the others are read."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.errors import UnwatchableError
from esdmon.weights import Matrix, describe_unreadable, discover, extract
from esdmon.weights.non_weights import NESTED
from tests.loops import warnings

LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Linear(64, 96), "weight"),
    "convolution": (lambda: nn.Conv2d(16, 32, 3), "weight"),
    "bilinear": (lambda: nn.Bilinear(12, 14, 6), "weight"),
    "attention": (lambda: nn.MultiheadAttention(24, 4), "in_proj_weight"),
    "recurrent": (lambda: nn.LSTM(15, 20), "weight_ih_l0"),
    "projected": (lambda: nn.LSTM(15, 20, proj_size=12), "weight_hr_l0"),
    "embedding": (lambda: nn.Embedding(50, 20), "weight"),
}
SHAPES: dict[str, Any] = {"empty": (0,), "flat": (300,), "scalar": (), "five": (2, 2, 2, 2, 2), "none": None}


def with_weight(make: Callable[[], nn.Module], attribute: str, shape: tuple[int, ...] | None) -> nn.Module:
    layer = make()
    layer._parameters[attribute] = None if shape is None else nn.Parameter(torch.ones(shape))
    return layer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_of_another_shape_is_skipped_and_the_rest_is_read(kind: str, shape: str) -> None:
    """Whatever it is, `watch` and `analyze` go on."""
    make, attribute = LAYERS[kind]
    model = nn.ModuleDict({"odd": with_weight(make, attribute, SHAPES[shape]), "good": nn.Linear(64, 96)})
    with esdmon.watch(model, every=1, budget=None, sinks=None, strict=True) as monitor:
        monitor.step()
    assert monitor.report is not None
    assert monitor.report["good"].status == "ok"
    odd = [layer for layer in monitor.report if layer.name in ("odd", f"odd.{attribute}", "odd.q_proj_weight")]
    assert all(layer.status == "skipped" and layer.reason for layer in odd)
    assert odd or kind == "embedding"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((0,), r"an empty weight of shape \(0,\), as ZeRO-3 leaves in a checkpoint: join its shards first"),
        ((300,), r"shape \(300,\) does not fit its layer; probably 300 elements of a sharded weight"),
        (None, "its weight is None, not a tensor"),
    ],
)
def test_nothing_to_read_is_one_line_and_no_error(
    shape: tuple[int, ...] | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A model whose matrices are all elsewhere trains on; the optimizer is not blamed."""
    model = nn.Sequential(*(with_weight(lambda: nn.Linear(64, 96), "weight", shape) for _ in range(5)))
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters())
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=None, strict=True, hook=False) as monitor:
        monitor.step()
    lines = warnings(caplog)
    assert len(lines) == 1
    assert lines[0].startswith("esdmon: 5 of 5 matrices are skipped because they cannot be read (0: ")
    assert lines[0].endswith("; and 2 more). No matrix is left to read; training continues without readings.")
    assert monitor.report is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(monitor.report["0"].reason)


def test_a_placeholder_of_zero_3_says_what_it_is_of() -> None:
    """By the attributes of its parameters: never read, also where it is gathered for the moment."""
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    for layer in model:
        weight: Any = layer.weight
        weight.ds_id, weight.ds_shape, weight.ds_tensor = 1, weight.shape, torch.ones(3072)
    model[0].weight.data = torch.empty(0)
    report = esdmon.analyze(model)
    (reason,) = {layer.reason for layer in report}
    assert reason.startswith("sharded over ranks in a way that esdmon does not know")  # there is no job here
    assert [layer.n_parameters for layer in report] == [6144, 6144]


def test_a_tensor_parallel_weight_of_megatron_is_not_taken_for_a_whole_one() -> None:
    """By its attribute; there is no job here. Those of a job: `tests/runtime/ranks/test_megatron.py`."""
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    model[0].weight.tensor_model_parallel = True  # type: ignore[union-attr]
    report = esdmon.analyze(model)
    assert report["0"].reason.endswith("or that this version of Megatron or DeepSpeed stores elsewhere")
    assert report["1"].status == "ok"


class Broken(nn.Linear):
    """One whose weights cannot be asked for."""


class FailsForSome:
    """A plugin that raises in the lookup of one kind of layer."""

    @esdmon.hookimpl
    def esdmon_extract_matrices(self, name: str, module: nn.Module) -> Sequence[Matrix] | None:
        if isinstance(module, Broken):
            return [Matrix(name, self._raise, lambda weight: weight)]
        return None

    @staticmethod
    def _raise() -> Tensor:
        raise RuntimeError("not here")


def test_a_module_whose_discovery_raises_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """With one line and a reason; the others are read."""
    report = esdmon.analyze(
        nn.ModuleDict({"broken": Broken(20, 20), "good": nn.Linear(64, 96)}), plugins=[FailsForSome()]
    )
    assert report["good"].status == "ok"
    assert report["broken"].status == "skipped"
    assert "not here" in report["broken"].reason
    assert "1 of 2 matrices are skipped" in caplog.text


def test_an_extractor_that_raises_costs_one_line() -> None:
    """The sentence names three of five modules."""

    def extractor(name: str, module: nn.Module) -> Sequence[Matrix] | None:
        if isinstance(module, Broken):
            raise OSError("no")
        return extract(name, module)

    model = nn.Sequential(nn.Linear(64, 96), *(Broken(20, 20) for _ in range(5)))
    watched = discover(model, extractor=extractor)
    assert [matrix.name for matrix in watched.matrices if not matrix.unreadable] == ["0"]
    assert {skip.reason for skip in watched.coverage.skipped} == {"OSError: no", "vectors"}
    assert (
        describe_unreadable(watched)[1]
        == "the search for weights raised OSError: no in 1, 2, 3 and 2 more. Their weights are not read."
    )


ODD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "no outputs": (lambda: torch.zeros(0, 64, 3, 3), r"an empty weight of shape \(0, 64, 3, 3\)"),
    "no inputs": (lambda: torch.zeros(64, 0, 5), r"an empty weight of shape \(64, 0, 5\)"),
    "no rows": (lambda: torch.zeros(0, 64), "an empty weight"),
    "coo": (lambda: torch.ones(20, 30).to_sparse(), "a sparse_coo tensor: convert it"),
    "csr": (lambda: torch.ones(20, 30).to_sparse_csr(), "a sparse_csr tensor: convert it"),
    "bsr": (lambda: torch.ones(20, 30).to_sparse_bsr((5, 5)), "a sparse_bsr tensor: convert it"),
    "complex": (lambda: torch.ones(20, 30, dtype=torch.complex64), "its numbers are complex"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_of_an_unusual_kind_is_skipped_in_a_mapping(kind: str) -> None:
    """Empty, sparse or complex: a short reason, and the others are read."""
    make, reason = ODD[kind]
    report = esdmon.analyze({"good.weight": torch.randn(64, 96), "odd.weight": make()})
    assert report["good"].status == "ok"
    assert report["odd"].status == "skipped"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report["odd"].reason)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_left_out(layout: torch.layout) -> None:
    """Of a mapping, of a module of one's own, and of a linear layer; alone in a mapping it is an error of the user."""
    nested = torch.nested.nested_tensor([torch.randn(32, 40), torch.randn(20, 40)], layout=layout)
    own, linear = nn.Module(), nn.Linear(64, 96)
    own.weight = linear.weight = nn.Parameter(nested)
    good = nn.Linear(64, 96)
    for odd in (own, linear):
        report = esdmon.analyze(nn.ModuleDict({"odd": odd, "good": good}))
        assert report["good"].status == "ok"
        assert ("odd.weight", NESTED) in {(skip.name, skip.reason) for skip in report.coverage.skipped}
    report = esdmon.analyze({"odd.weight": nested, "good.weight": good.weight})
    assert report["good"].status == "ok"
    assert [(skip.name, skip.reason) for skip in report.coverage.skipped] == [("odd.weight", NESTED)]
    with pytest.raises(UnwatchableError, match="its parameters are nested tensors"):
        esdmon.analyze({"odd.weight": nested})


def test_an_empty_convolution_does_not_stop_a_watch() -> None:
    """As pruning of channels leaves it; `watch` is one line of a script, and must not end it."""
    with pytest.warns(UserWarning, match="zero-element tensors"):
        model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 0, 3))
    with esdmon.watch(model, every=1, budget=None, sinks=None, strict=True) as monitor:
        monitor.step()
    assert monitor.report is not None
    assert [layer.status for layer in monitor.report] == ["ok", "skipped"]
