"""The update of a weight and its optimizer's momentum, in watched trainings, against SVDs in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.sinks import MemorySink

VIEWS = ["*", "*/update", "*/momentum"]


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"fc": nn.Linear(40, 24), "conv": nn.Conv2d(12, 16, 3), "mha": nn.MultiheadAttention(32, 2)})


def norms(weight: Tensor) -> dict[str, float]:
    """Of a matrix, or of the kernel positions of a convolution: σmax of any, and the norm of all."""
    stack = weight.detach().double()
    stack = stack.flatten(2).permute(2, 0, 1) if stack.ndim == 4 else stack[None]
    sigma = torch.cat([torch.linalg.svdvals(matrix) for matrix in stack])
    return {"spectral_norm": float(sigma.max()), "frobenius_norm": float(sigma.square().sum().sqrt())}


def parts(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """By name of the matrix, given values of the shapes of the parameters."""
    q, k, v = values["mha.in_proj_weight"].chunk(3)
    return {
        "fc": values["fc.weight"],
        "conv": values["conv.weight"],
        "mha.in_proj_weight/q": q,
        "mha.in_proj_weight/k": k,
        "mha.in_proj_weight/v": v,
        "mha.out_proj": values["mha.out_proj.weight"],
    }


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "AdamW": (torch.optim.AdamW, {"lr": 1e-2}, "exp_avg"),
    "SGD": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}, "momentum_buffer"),
}


@pytest.mark.parametrize("mode", ["sync", "thread"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_and_momenta_have_the_norms_of_an_svd(name: str, mode: str) -> None:
    """At each of three readings, two steps apart, of linear layers, convolutions and parts of fused projections."""
    net = model()
    make, options, key = OPTIMIZERS[name]
    optimizer = make(net.parameters(), **options)
    sink = MemorySink()
    before = weights(net)
    expected: list[dict[str, dict[str, float]]] = []
    with esdmon.watch(net, optimizer, every=2, budget=None, mode=mode, sinks=[sink], layers=VIEWS) as monitor:
        for _ in range(3):
            step(net, optimizer)
            step(net, optimizer)
            now = weights(net)
            update = parts({each: now[each] - before[each] for each in now})
            state = {each: optimizer.state[parameter][key].clone() for each, parameter in net.named_parameters()}
            expected.append(
                {f"{each}/update": norms(value) for each, value in update.items()}
                | {f"{each}/momentum": norms(value) for each, value in parts(state).items()}
            )
            before = now
    assert monitor.errors == ()
    assert [report.step for report in sink.reports] == [2, 4, 6]
    for report, wanted in zip(sink.reports, expected, strict=True):
        assert {layer.name for layer in report if not layer.is_followed} == wanted.keys()
        for each, value in wanted.items():
            layer = report[each]
            assert (layer.status, layer.view) == ("ok", each.rpartition("/")[2])
            assert {key: layer.measures[key] for key in value} == pytest.approx(value, rel=1e-4)
            assert (layer.phase.value, layer.alpha_is_meaningful) == ("unclassified", False)


def test_muon_is_read_as_well() -> None:
    net = nn.Linear(40, 24, bias=False)
    optimizer = torch.optim.Muon(net.parameters(), lr=1e-2)
    with esdmon.watch(net, optimizer, every=1, budget=None, sinks=[], layers=["*/momentum"]) as monitor:
        step(net, optimizer)
    assert monitor.report is not None
    (layer,) = monitor.report
    expected = norms(optimizer.state[net.weight]["momentum_buffer"])
    assert layer.measures["spectral_norm"] == pytest.approx(expected["spectral_norm"], rel=1e-4)


def test_a_momentum_in_eight_bits_is_read_as_its_numbers() -> None:
    """Of torchao's optimizers, which keep it so for weights of 4096 elements or more."""
    net = nn.Linear(64, 64, bias=False)
    optimizer = pytest.importorskip("torchao.optim").AdamW8bit(net.parameters(), lr=1e-2)
    eager = torch.compiler.set_stance("force_eager")  # it compiles its steps
    with eager, esdmon.watch(net, optimizer, every=1, budget=None, sinks=[], layers=["*/momentum"]) as monitor:
        step(net, optimizer)
    assert monitor.report is not None
    (layer,) = monitor.report
    packed = optimizer.state[net.weight]["exp_avg"]
    assert type(packed) is not Tensor
    assert layer.measures["spectral_norm"] == pytest.approx(norms(packed.dequantize())["spectral_norm"], rel=1e-4)


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit", "AdEMAMix8bit", "Adam"])
def test_a_momentum_of_bitsandbytes_is_read_as_its_numbers(name: str) -> None:
    """In 8 bits for weights of 4096 elements or more: a tenth of the first gradient, of Lion a hundredth."""
    optim = pytest.importorskip("bitsandbytes").optim
    net = nn.Linear(65, 67, bias=False)
    optimizer = getattr(optim, name)(net.parameters(), lr=1e-2)
    with esdmon.watch(net, optimizer, every=1, budget=None, sinks=[], layers=["*/momentum"]) as monitor:
        step(net, optimizer)
    assert monitor.report is not None
    (layer,) = monitor.report
    assert net.weight.grad is not None
    share = {"Lion8bit": 0.01}.get(name, 0.1)
    assert layer.measures["frobenius_norm"] == pytest.approx(share * float(net.weight.grad.norm()), rel=0.02)


class Projected(torch.optim.Optimizer):
    """Keeps the mean of a gradient that is projected to eight dimensions, as GaLore does."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["exp_avg"] = parameter.grad[:8].clone()


def test_a_momentum_that_is_not_read_has_a_fitting_reason() -> None:
    """One of another shape, and a state without one by a known name."""
    optim = pytest.importorskip("bitsandbytes").optim
    for make, reason in (
        (Projected, "the optimizer's exp_avg has the shape 8 × 64, and the weight 64 × 64, as where GaLore keeps it"),
        (optim.RMSprop8bit, "the optimizer's state of it has state1, qmap1, absmax1, of which none is known to be a"),
        (torch.optim.RMSprop, "the optimizer's state of it has square_avg, of which none is known to be a momentum"),
    ):
        net = nn.Linear(64, 64, bias=False)
        optimizer = make(net.parameters())
        with esdmon.watch(net, optimizer, every=1, budget=None, sinks=[], layers=["*/momentum"]) as monitor:
            step(net, optimizer)
        assert monitor.report is not None
        (layer,) = monitor.report
        assert (layer.status, layer.reason[: len(reason)]) == ("skipped", reason)


def test_they_are_not_read_unless_named_and_change_nothing_of_the_model_s_summary() -> None:
    """Neither medians, numbers of phases, nor alerts are about them."""
    net, other = model(), model()
    found = []
    for each, layers in ((net, None), (other, VIEWS)):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-2)
        with esdmon.watch(each, optimizer, every=1, budget=None, sinks=[], layers=layers) as monitor:
            for _ in range(12):
                torch.manual_seed(1)
                step(each, optimizer)
        assert monitor.report is not None
        summary = monitor.report.summary
        found.append([value for name, value in summary.items() if "median" in name or "layers_" in name][:11])
        assert all(alert.rule != "norm_explosion" for alert in monitor.alerts)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert [layer.name for layer in esdmon.analyze(net)] == list(parts(weights(net)))
    assert found[0] == found[1]


def test_what_has_no_momentum_or_no_earlier_reading_has_a_reason() -> None:
    net = nn.Sequential(nn.Linear(40, 24))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with esdmon.watch(net, optimizer, every=1, budget=None, sinks=[], layers=["*/update", "*/momentum"]) as monitor:
        step(net, optimizer)
        state = monitor.state_dict()
        assert monitor.report is not None
        assert [layer.status for layer in monitor.report] == ["ok", "skipped"]
        assert monitor.report["0/momentum"].reason == (
            "the optimizer holds no momentum of it, neither exp_avg nor momentum_buffer"
        )
        monitor.load_state_dict(state)
        step(net, optimizer)
        assert monitor.report["0/update"].reason == "its first reading: the update is known from the second on"
        step(net, optimizer)
        assert monitor.report["0/update"].status == "ok"
    assert monitor.errors == ()


def test_a_weight_that_stands_still_has_no_update() -> None:
    net = nn.Sequential(nn.Linear(40, 24))
    net[0].weight.requires_grad = False
    with esdmon.watch(net, every=1, budget=None, sinks=[], layers=["*/update"]) as monitor:
        monitor.step()
        monitor.step()
    assert monitor.report is not None
    (layer,) = monitor.report
    assert layer.status == "skipped"
