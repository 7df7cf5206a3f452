"""LoRA layers of other libraries than peft: one adapter without a name, in a module as in its file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.weights import discover

OUTPUTS, INPUTS, RANK, ALPHA = 70, 40, 4, 6.0


class OfLoralib(nn.Linear):
    """Factors are parameters beside the weight; `scaling` is s (loralib 0.1.2, `lora.Linear`)."""

    scaling = ALPHA / RANK

    def __init__(self) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self.lora_A = nn.Parameter(torch.randn(RANK, INPUTS))
        self.lora_B = nn.Parameter(torch.randn(OUTPUTS, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)


class OfLitGPT(nn.Module):
    """The weight is that of a layer inside (LitGPT 0.5.11, `LoRALinear`)."""

    scaling = ALPHA / RANK

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, OUTPUTS)
        self.lora_A = nn.Parameter(torch.randn(RANK, INPUTS))
        self.lora_B = nn.Parameter(torch.randn(OUTPUTS, RANK))


class OfTorchtune(nn.Module):
    """Factors are linear layers; s is `alpha` by `rank` (torchtune 0.6.1, `LoRALinear`)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.rank = ALPHA, RANK
        self.weight = nn.Parameter(torch.randn(OUTPUTS, INPUTS))
        self.lora_a, self.lora_b = nn.Linear(INPUTS, RANK, bias=False), nn.Linear(RANK, OUTPUTS, bias=False)


class OfTorchtitan(nn.Linear):
    """The same in a subclass of the layer; `_lora_scaling` is s (torchtitan 0.3.0, `LoRALinear`)."""

    def __init__(self) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self._lora_scaling = ALPHA / RANK
        self.lora_a, self.lora_b = nn.Linear(INPUTS, RANK, bias=False), nn.Linear(RANK, OUTPUTS, bias=False)


class Table(nn.Embedding):
    """What is added to an embedding is the transpose of B·A (loralib, `lora.Embedding`)."""

    scaling = ALPHA / RANK

    def __init__(self) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self.lora_A = nn.Parameter(torch.randn(RANK, INPUTS))
        self.lora_B = nn.Parameter(torch.randn(OUTPUTS, RANK))


LAYERS: list[type[nn.Module]] = [OfLoralib, OfLitGPT, OfTorchtune, OfTorchtitan, Table]


def factors(layer: nn.Module) -> list[Tensor]:
    """Return A and B."""
    found = [parameter.detach() for name, parameter in layer.named_parameters() if "lora_" in name]
    assert [tuple(each.shape) for each in found] == [(RANK, INPUTS), (OUTPUTS, RANK)]
    return found


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_added_is_read_by_its_singular_values(kind: type[nn.Module]) -> None:
    """s·B·A, whatever its rank; the factors are not read apart."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": kind()})
    a, b = factors(model)
    sigma = torch.linalg.svdvals(ALPHA / RANK * (b @ a).double())[:RANK]
    report = esdmon.analyze(model, layers=["*"])
    base = "up.linear" if kind is OfLitGPT else "up"
    assert {layer.name for layer in report} == {base, "up/lora"}
    delta = report["up/lora"]
    assert (delta.status, delta.view, delta.N, delta.M) == ("ok", "lora-delta", OUTPUTS, RANK)
    assert delta.measures["spectral_norm"] == pytest.approx(float(sigma[0]), rel=1e-5)
    assert delta.measures["frobenius_norm"] == pytest.approx(float((sigma**2).sum().sqrt()), rel=1e-5)
    if kind is not OfLitGPT:
        assert delta.measures["base_ratio"] == pytest.approx(float(sigma[0]) / report[base].measures["spectral_norm"])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_file_has_the_same_matrices(kind: type[nn.Module], tmp_path: Path) -> None:
    """The scale is not in a file: s = 1."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": kind()})
    torch.save(model.state_dict(), tmp_path / "a.pt")
    live, stored = esdmon.analyze(model, layers=["*"]), esdmon.analyze(tmp_path / "a.pt", layers=["*"])
    assert {(layer.name, layer.view, layer.N, layer.M) for layer in stored} == {
        (layer.name, layer.view, layer.N, layer.M) for layer in live
    }
    norms = [report["up/lora"].measures["frobenius_norm"] for report in (live, stored)]
    assert norms[0] == pytest.approx(norms[1] * ALPHA / RANK)


class Fused(nn.Module):
    """q, k and v in one layer, whose factors are multiplied one by one, that does not say which have factors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, 3 * INPUTS)
        self.lora_A = nn.Parameter(torch.randn(3 * RANK, INPUTS))
        self.lora_B = nn.Parameter(torch.randn(3 * INPUTS, RANK))


class OfQueries(nn.Module):
    """The same with factors of q and v, and fewer heads of k and v than of q (LitGPT 0.5.11, `LoRAQKVLinear`)."""

    scaling, enable_lora, qkv_shapes = ALPHA / RANK, (True, False, True), (INPUTS, INPUTS // 2)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, 2 * INPUTS)
        self.lora_A = nn.Parameter(torch.randn(2 * RANK, INPUTS))
        self.lora_B = nn.Parameter(torch.randn(sum(self.qkv_shapes), RANK))


class OfEqualParts(nn.Linear):
    """The same with as many heads of each (loralib 0.1.2, `MergedLinear`)."""

    scaling, enable_lora = ALPHA / RANK, [True, True, True]

    def __init__(self) -> None:
        super().__init__(INPUTS, 3 * INPUTS)
        self.lora_A = nn.Parameter(torch.randn(3 * RANK, INPUTS))
        self.lora_B = nn.Parameter(torch.randn(3 * INPUTS, RANK))


@pytest.mark.parametrize(
    ("kind", "outputs"), [(OfQueries, {"q": 40, "v": 20}), (OfEqualParts, {"q": 40, "k": 40, "v": 40})]
)
def test_what_is_added_to_each_of_q_k_and_v_is_read(kind: type[Any], outputs: dict[str, int]) -> None:
    """By its own rows of both factors; all elements of the factors are covered."""
    torch.manual_seed(0)
    layer = kind()
    report = esdmon.analyze(nn.ModuleDict({"qkv": layer}))
    assert {layer.name for layer in report} == {
        "qkv.linear" if kind is OfQueries else "qkv",
        *(f"qkv/lora.{label}" for label in outputs),
    }
    first = 0
    for place, (label, size) in enumerate(outputs.items()):
        a, b = layer.lora_A[place * RANK : (place + 1) * RANK], layer.lora_B[first : first + size]
        added = report[f"qkv/lora.{label}"]
        assert (added.status, added.view, added.M) == ("ok", "lora-delta", RANK)
        assert added.measures["frobenius_norm"] == pytest.approx(
            float((ALPHA / RANK * b @ a).detach().norm()), rel=1e-5
        )
        first += size
    assert [skip.name.rpartition(".")[2] for skip in report.coverage.skipped] == ["bias"]


class Kernel(nn.Conv2d):
    """B·A is reshaped into a kernel (loralib, `lora.Conv2d`)."""

    def __init__(self) -> None:
        super().__init__(16, 24, 3)
        self.lora_A = nn.Parameter(torch.randn(12, 48))
        self.lora_B = nn.Parameter(torch.randn(72, 12))


@pytest.mark.parametrize("kind", [Fused, Kernel])
def test_factors_whose_product_is_not_the_weight_stay_matrices(kind: type[nn.Module], tmp_path: Path) -> None:
    """In a module as in its file."""
    model = nn.ModuleDict({"up": kind()})
    torch.save(model.state_dict(), tmp_path / "a.pt")
    names = {"up.linear" if kind is Fused else "up", "up.lora_A", "up.lora_B"}
    assert {matrix.name for matrix in discover(model).matrices} == names
    assert {layer.name for layer in esdmon.analyze(tmp_path / "a.pt")} == names


def test_an_adapter_is_watched_while_it_trains() -> None:
    """B is zero at the start: the adapter is inactive, without an alert. The base is read once."""
    torch.manual_seed(0)
    layer = OfLoralib()
    nn.init.zeros_(layer.lora_B)
    layer.weight.requires_grad = False
    model = nn.Sequential(layer)
    assert esdmon.analyze(model)["0/lora"].reason.startswith("inactive")
    optimizer = torch.optim.Adam([layer.lora_A, layer.lora_B], lr=1e-2)
    with esdmon.watch(model, optimizer, every=5, budget=None, sinks=[]) as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            x = torch.randn(16, INPUTS)
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    assert monitor.report is not None
    delta, base = monitor.report["0/lora"], monitor.report["0"]
    assert (delta.step, delta.in_optimizer, delta.trainable) == (20, True, True)
    assert (base.step, base.in_optimizer, base.trainable) == (5, False, False)
    assert delta.update_ratio > 0
    assert not monitor.alerts
