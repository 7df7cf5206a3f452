"""Torch's older ways of computing a weight from others: hooks that leave a plain tensor behind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import esdmon
from esdmon.weights import Matrix, discover, read_spectrum, stacks

pruned: Any = prune.random_unstructured
HOOKS: dict[str, Callable[[nn.Linear], Any]] = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "pruning": lambda layer: pruned(layer, "weight", amount=0.3),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("hook", HOOKS)
def test_a_weight_that_a_hook_computes_is_read_as_the_next_forward_will_have_it(hook: str) -> None:
    """Not as the last one left it; no state moves, and the parameters behind it count as watched."""
    torch.manual_seed(0)
    model = nn.Sequential(HOOKS[hook](nn.Linear(40, 30)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watched = discover(model)
    (matrix,) = watched.matrices
    spectrum = read_spectrum(matrix, precision="exact")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {skip.name for skip in watched.coverage.skipped} == {"0.bias"}
    model.eval()(torch.ones(1, 40))
    weight: Any = model[0].weight
    expected = np.sort(torch.linalg.svdvals(weight.detach().double()).numpy() ** 2) / 40
    assert np.allclose(spectrum.eigenvalues, expected, rtol=1e-6)


def test_the_record_says_which_weights_are_computed() -> None:
    """By a hook, a parametrisation, or neither; in a line of JSON too."""
    layers = [spectral_norm(nn.Linear(40, 30)), parametrizations.spectral_norm(nn.Linear(30, 20)), nn.Linear(20, 20)]
    report = esdmon.analyze(nn.Sequential(*layers).eval())
    assert [layer.computed for layer in report] == [True, True, False]
    assert [record["computed"] for record in report.to_records()] == [True, True, False]


def test_a_hooked_weight_is_recognised_in_the_handle_of_any_extractor() -> None:
    """However that looks the weight up."""
    model = HOOKS["spectral_norm"](nn.Linear(40, 30))
    with torch.no_grad():
        model.weight_orig.mul_(torch.rand(30, 40) + 0.5)

    def extractor(name: str, module: nn.Module) -> list[Matrix]:
        return [Matrix(name, lambda: module.weight, stacks.linear)]  # type: ignore[return-value,arg-type]

    (ours,), (theirs,) = discover(model).matrices, discover(model, extractor=extractor).matrices
    assert np.array_equal(read_spectrum(theirs).eigenvalues, read_spectrum(ours).eigenvalues)
    assert [id(each) for each in theirs.parameters()] == [id(model.weight_orig)]


def test_training_with_a_hooked_weight_is_watched() -> None:
    """It moves between readings, and is in the optimizer."""
    model = nn.Sequential(HOOKS["spectral_norm"](nn.Linear(40, 30)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=None, strict=True) as monitor:
        for _ in range(2):
            model(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
    assert monitor.report is not None
    (layer,) = monitor.report
    assert layer.in_optimizer
    assert layer.trainable
    assert layer.update_ratio > 0


def test_the_other_parameters_of_a_parametrised_layer_are_covered() -> None:
    """Each is read from itself alone: of this LSTM two of four weights are normalised."""
    lstm = nn.LSTM(24, 24, num_layers=2)
    for attribute in ("weight_hh_l0", "weight_ih_l1"):
        nn.utils.parametrizations.weight_norm(lstm, attribute)
    watched = discover(nn.ModuleDict({"lstm": lstm}))
    assert {skip.reason for skip in watched.coverage.skipped} == {"vectors"}
    behind = {matrix.name: {tuple(weight.shape) for weight in matrix.parameters()} for matrix in watched.matrices}
    assert behind["lstm.weight_ih_l0/i"] == {(96, 24)}
    assert behind["lstm.weight_hh_l0/i"] == {(96, 1), (96, 24)}
