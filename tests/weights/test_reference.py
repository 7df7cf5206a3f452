import numpy as np
import pytest
import torch
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon.spectrum import Phase
from esdmon.weights import discover, read_spectrum


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 90))


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.get_parameter("0.weight").add_(torch.randn(80, 100), alpha=0.1)
    return model


def test_the_difference_is_what_is_read() -> None:
    """The spectrum of W − W₀ by a float64 SVD; what has not moved is skipped and says so."""
    before, after = network(), moved(network())
    watched = discover(after, reference=before)
    spectrum = read_spectrum(watched.matrices[0], precision="exact")
    change = (after.get_parameter("0.weight") - before.get_parameter("0.weight")).detach().double()
    assert spectrum.view == "difference"
    assert np.allclose(spectrum.eigenvalues, np.sort(torch.linalg.svdvals(change).numpy() ** 2) / 100, rtol=1e-9)
    layer = esdmon.analyze(after, reference=before.state_dict())["1"]
    assert (layer.status, layer.reason, layer.view) == ("skipped", "equal to the reference", "difference")


def test_a_state_dict_of_the_model_itself_does_not_move_along() -> None:
    """The common slip: `reference=model.state_dict()` shares its memory."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(
        model, optimizer, every=1, budget=None, sinks=None, reference=model.state_dict(), strict=True
    ) as monitor:
        model(torch.randn(50, 100)).square().mean().backward()
        optimizer.step()
    assert monitor.report is not None
    assert [layer.status for layer in monitor.report] == ["ok", "ok"]
    assert [layer.view for layer in monitor.report] == ["difference", "difference"]


def test_a_change_of_low_rank_is_no_collapse() -> None:
    """What an adapter has left in the weights."""
    before, after = network(), network()
    with torch.no_grad():
        after.get_parameter("0.weight").add_(torch.randn(80, 4) @ torch.randn(4, 100))
    layer = esdmon.analyze(after, reference=before, layers=["0"])["0"]
    assert layer.phase is Phase.UNCLASSIFIED
    assert layer.explanation.startswith("The change has rank 4 of 80")


def test_other_shapes_and_missing_layers_are_reported() -> None:
    """A reference with one layer of another shape and one that is not there."""
    report = esdmon.analyze(network(), reference={"0.weight": torch.ones(80, 90)})
    assert report["0"].reason == "its shape is (80, 100), but (80, 90) in the reference"
    assert {skip.name: skip.reason for skip in report.coverage.skipped}["1.weight"] == "not in the reference"


def test_a_reference_that_is_not_finite_is_named_as_such() -> None:
    """The weight itself is whole, or else its own elements are counted."""
    before = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    before["0.weight"][3, 5] = torch.nan
    after = network()
    with torch.no_grad():
        after.get_parameter("1.weight")[:2, 0] = torch.inf
    report = esdmon.analyze(after, reference=before)
    assert {layer.name: (layer.status, layer.reason) for layer in report} == {
        "0": ("nonfinite", "1 of 8000 elements are NaN or infinite in the reference"),
        "1": ("nonfinite", "2 of 7200 elements are NaN or infinite"),
    }


def test_a_reference_of_another_model_is_refused() -> None:
    """With names from both sides."""
    with pytest.raises(InputError, match="reference= has none of the model's matrices: it has fc1, the model 0, 1"):
        esdmon.analyze(network(), reference={"fc1.weight": torch.ones(80, 100)})
