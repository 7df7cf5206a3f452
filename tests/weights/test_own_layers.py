"""Layers of the user's own, whose classes no extractor knows, with weights of three and more sides."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.weights import discover


class Own(nn.Module):
    """A layer with one weight, and attributes that say what it does with it."""

    def __init__(self, *shape: int, name: str = "weight", **attributes: Any) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        for attribute, value in attributes.items():
            setattr(self, attribute, value)


READ: dict[str, tuple[nn.Module, str, tuple[int, int, int], str]] = {
    "a convolution of equalised scale": (Own(40, 20, 3, 3), "layer", (9, 40, 20), "conv2d"),
    "one along time": (Own(40, 20, 5), "layer", (5, 40, 20), "conv1d"),
    "one that is modulated for each sample": (Own(1, 40, 20, 3, 3), "layer", (9, 40, 20), "conv2d"),
    "a convolution of volumes": (Own(40, 20, 3, 3, 3), "layer", (27, 40, 20), "conv3d"),
    "a matrix for each relation": (Own(5, 32, 64), "layer", (5, 32, 64), "linear"),
    "experts without their number": (Own(4, 32, 64, name="w1"), "experts", (4, 32, 64), "experts"),
}


@pytest.mark.parametrize("kind", READ)
def test_a_weight_of_an_unknown_layer_is_read_alike_from_module_and_state(kind: str) -> None:
    """As kernel positions or as a stack, by its shape and name."""
    layer, name, shape, layer_type = READ[kind]
    model = nn.ModuleDict({name: layer, "fc": nn.Linear(24, 24)})
    in_module, in_state = (
        {matrix.name: matrix.stack_shape() for matrix in discover(form).matrices}
        for form in (model, model.state_dict())
    )
    assert in_module == in_state
    assert shape in in_module.values()
    own = esdmon.analyze(model, measures=["frobenius_norm"]).layers[0]
    assert own.kind == layer_type
    assert own.measures["frobenius_norm"] == pytest.approx(float(next(layer.parameters()).detach().norm()), rel=1e-5)


def test_a_layer_that_says_its_groups_is_read_by_them() -> None:
    """As deformable convolutions of torchvision do; a file does not say so."""
    matrix, *_ = discover(nn.ModuleDict({"conv": Own(40, 5, 3, 3, groups=4)})).matrices
    assert matrix.stack_shape() == (36, 10, 5)


LEFT_OUT: dict[str, tuple[nn.Module, str]] = {
    "a norm over positions": (nn.LayerNorm((24, 24)), "scales of a norm"),
    "a norm over pictures": (nn.LayerNorm((24, 16, 16)), "scales of a norm"),
    "a scale for each channel": (Own(1, 24, 1, 1), "4-D parameters of unknown layout"),
    "learned positions": (Own(1, 50, 128), "3-D parameters of unknown layout"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_only_looks_like_a_matrix_is_left_out_with_its_reason(kind: str) -> None:
    """From a module; from a state dict where the name says what it is."""
    layer, reason = LEFT_OUT[kind]
    name = "norm1" if isinstance(layer, nn.LayerNorm) else "layer"
    model = nn.ModuleDict({name: layer, "fc": nn.Linear(24, 24)})
    forms: list[nn.Module | dict[str, Tensor]] = [model]
    if kind != "a scale for each channel":
        forms.append(model.state_dict())
    for form in forms:
        report = esdmon.analyze(form, measures=["frobenius_norm"])
        assert [layer.name for layer in report] == ["fc"]
        assert {skip.name: skip.reason for skip in report.coverage.skipped}[f"{name}.weight"] == reason
