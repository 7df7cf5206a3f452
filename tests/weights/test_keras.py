"""Models of Keras, whose layers are modules with their variables in a dictionary, by paths with slashes."""

from typing import Any

import pytest
import torch
from torch import nn

import esdmon


def only(report: esdmon.Report) -> esdmon.LayerReport:
    (layer,) = report
    return layer


def skipped(report: esdmon.Report) -> dict[str, str]:
    """Return why what is not read is left out, by name."""
    return {each.name: each.reason for each in report.coverage.skipped}


class Layer(nn.Module):
    """A layer as Keras makes it: it has its own variables, and those of the layers inside it."""

    _torch_params: nn.ParameterDict

    def __init__(self, variables: dict[str, nn.Parameter], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
            if isinstance(layer, Layer):
                variables = {**variables, **layer._torch_params}
        self._torch_params = nn.ParameterDict(variables)


Layer.__module__ = "keras.src.layers.layer"


def drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def model() -> Layer:
    dense = Layer({"net/dense/kernel": drawn(24, 32), "net/dense/bias": drawn(32)})
    heads = Layer({"net/att/query/kernel": drawn(24, 12, 4), "net/att/query/bias": drawn(12, 16)})
    return Layer({"net/out/kernel": drawn(32, 16)}, dense=dense, heads=heads, wrapped=nn.Linear(20, 16))


@pytest.mark.parametrize("prefix", ["", "generator."])
def test_names_are_the_paths_of_variables(prefix: str) -> None:
    """Once each, whichever of the layers is found first; in a module of torch after the name of the model there."""
    whole: nn.Module = model()
    if prefix:
        whole = nn.ModuleDict({"generator": whole})
    report = esdmon.analyze(whole)
    names = ["net/dense/kernel", "net/att/query/kernel", "wrapped", "net/out/kernel"]
    assert [layer.name for layer in report] == [prefix + name for name in names]
    assert all(layer.aliases == () for layer in report)
    assert {layer.name for layer in esdmon.analyze(whole.state_dict())} == {prefix + name for name in names}
    assert len(esdmon.analyze(whole, reference=whole.state_dict())) == len(names)
    assert skipped(report)[f"{prefix}net/att/query/bias"] == "biases"


def kernels() -> list[Any]:
    """Return names and shapes of Keras, and how torch's layer of the same weights has its sides."""
    return [
        ("conv2d_1/kernel", (3, 5, 24, 16), (3, 2, 0, 1)),
        ("sep/pointwise_kernel", (1, 1, 24, 16), (3, 2, 0, 1)),
        ("conv1d/kernel", (3, 24, 16), (2, 1, 0)),
        ("Conv_0.kernel", (3, 3, 3, 24, 16), (4, 3, 0, 1, 2)),
    ]


@pytest.mark.parametrize(("name", "shape", "sides"), kernels(), ids=[name for name, *_ in kernels()])
def test_kernels_are_read_as_those_of_torch(name: str, shape: tuple[int, ...], sides: tuple[int, ...]) -> None:
    """Positions come first in Keras, and last in torch; from a module as from a mapping."""
    kernel = drawn(*shape)
    read = [only(esdmon.analyze(each)) for each in (Layer({name.replace(".", "/"): kernel}), {name: kernel.detach()})]
    of_torch = only(esdmon.analyze({"conv.weight": kernel.detach().permute(sides)}))
    for layer in read:
        assert layer.kind == of_torch.kind == f"conv{len(shape) - 2}d"
        assert layer.measures == pytest.approx(of_torch.measures, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "shape", "read"),
    [("att/key/kernel", (24, 4, 8), (24, 32)), ("att/attention_output/kernel", (4, 8, 24), (32, 24))],
)
def test_heads_are_put_together(name: str, shape: tuple[int, ...], read: tuple[int, int]) -> None:
    """The projection of all heads is one matrix, as in torch's attention."""
    kernel = drawn(*shape)
    layer = only(esdmon.analyze({name: kernel.detach()}))
    assert layer.measures == pytest.approx(
        only(esdmon.analyze({"a.weight": kernel.detach().reshape(read)})).measures, rel=1e-4, nan_ok=True
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("own.kernel", (24, 16, 3, 3)), ("blur.kernel", (3, 1, 11, 11)), ("einsum/kernel", (24, 16, 12))],
)
def test_kernels_of_unknown_layout_are_left_out(name: str, shape: tuple[int, ...]) -> None:
    """One that a module of the user's own has as torch has it; one of three sides that is neither of the two."""
    report = esdmon.analyze({name: drawn(*shape).detach(), "fc.weight": drawn(16, 12).detach()})
    assert [layer.name for layer in report] == ["fc"]
    assert skipped(report)[name] == f"{len(shape)}-D parameters of unknown layout, which a plugin can read"
