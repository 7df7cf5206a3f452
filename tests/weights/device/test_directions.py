"""Directions of weights, against SVDs in float64 and against what peft counts."""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor, nn

import esdmon
from esdmon.sinks import MemorySink

MEASURES = ["spectral_norm", "intruders", "reference_overlap", "subspace_overlap"]
K = 10


def left(weight: Tensor) -> Tensor:
    u: Tensor = torch.linalg.svd(weight.detach().double(), full_matrices=False).U
    return u


def overlap(now: Tensor, before: Tensor) -> float:
    """Of the K strongest left singular vectors, by their principal angles."""
    angles = torch.linalg.svdvals(left(now)[:, :K].mT @ left(before)[:, :K])
    return float(angles.square().mean())


def count_intruders(now: Tensor, before: Tensor) -> int:
    cosines = (left(now)[:, :K].mT @ left(before)).abs()
    return int((cosines.max(dim=1).values < 0.5).sum())


def structured(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Return noise with 14 strong directions, so that the strongest are well defined."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator)
    u, v = (torch.linalg.qr(torch.randn(n, 14, generator=generator)).Q for n in (rows, columns))
    strengths = 3 * (rows**0.5 + columns**0.5) * torch.linspace(1, 2, 14)
    weight: Tensor = (noise + (u * strengths) @ v.T) / rows**0.5
    return weight


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (64, 64)])
def test_against_a_reference(shape: tuple[int, int]) -> None:
    before, added = structured(*shape), structured(*shape, seed=1)
    now = before + 1.5 * added
    report = esdmon.analyze({"fc.weight": now}, reference={"fc.weight": before}, measures=MEASURES)
    measures = report["fc"].measures
    assert measures["reference_overlap"] == pytest.approx(overlap(now, before), abs=1e-5)
    assert measures["intruders"] == count_intruders(now, before) > 0
    assert report["fc"].nulls["reference_overlap"] == K / shape[0]
    assert "subspace_overlap" not in measures  # of a watched run only


def test_a_weight_that_only_grows_has_turned_nowhere() -> None:
    before = structured(48, 96)
    measures = esdmon.analyze({"a.weight": 2 * before}, reference={"a.weight": before}, measures=MEASURES)["a"].measures
    assert measures["reference_overlap"] == pytest.approx(1)
    assert measures["intruders"] == 0


def test_without_a_reference_there_is_none() -> None:
    assert set(esdmon.analyze({"a.weight": structured(48, 96)}, measures=MEASURES)["a"].measures) == {"spectral_norm"}


def test_random_subspaces_have_the_overlap_of_the_null() -> None:
    reports = [
        esdmon.analyze(
            {"a.weight": structured(60, 80, seed=2 * seed + 1)},
            reference={"a.weight": structured(60, 80, seed=2 * seed)},
            measures=MEASURES,
        )["a"]
        for seed in range(30)
    ]
    mean = sum(report.measures["reference_overlap"] for report in reports) / 30
    assert mean == pytest.approx(reports[0].nulls["reference_overlap"], rel=0.1)


def test_intruders_of_an_adapter_are_those_that_peft_counts() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 80))
    with torch.no_grad():
        for weight in (net.get_parameter("0.weight"), net.get_parameter("2.weight")):
            weight.copy_(structured(*weight.shape))
    model: Any = get_peft_model(net, LoraConfig(r=6, target_modules=["0", "2"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_().mul_(1.4)
    report = esdmon.analyze(model, layers=["*/merged"], measures=MEASURES)
    lines: list[str] = []
    reduce_intruder_dimension(model, logging_sink=lines.append)
    counted = [int(found.group(1)) for line in lines if (found := re.search(r": Intruders: (\d+)", line))]
    assert [layer.measures["intruders"] for layer in report] == counted
    assert sum(counted) > 0


@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_a_watched_run_compares_each_reading_with_the_last(mode: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 24))
    sink = MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    weight, weights = net.get_parameter("0.weight"), []
    with esdmon.watch(net, optimizer, every=1, sinks=[sink], measures=MEASURES, mode=mode, budget=None):
        for _ in range(4):
            weight.grad = 0.05 * torch.randn(24, 40)
            optimizer.step()
            weights.append(weight.detach().clone())
    readings = [layer.measures["subspace_overlap"] for report in sink.reports for layer in report]
    assert readings[0] != readings[0]  # NaN: the first has none before it
    wanted = [overlap(now, before) for before, now in pairwise(weights)]
    assert readings[1:] == pytest.approx(wanted, abs=1e-5)


def test_a_watched_run_with_a_reference_reads_directions_of_the_weight() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 24))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sink = MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    options: dict[str, Any] = {"every": 1, "sinks": [sink], "mode": "thread", "budget": None}
    with esdmon.watch(net, optimizer, reference=before, measures=MEASURES, **options):
        for _ in range(3):
            net.get_parameter("0.weight").grad = 0.05 * torch.randn(24, 40)
            optimizer.step()
    measures = sink.reports[-1]["0"].measures
    now = net.get_parameter("0.weight")
    assert measures["reference_overlap"] == pytest.approx(overlap(now, before["0.weight"]), abs=1e-5)
    assert measures["intruders"] == count_intruders(now, before["0.weight"])


def test_slices_are_averaged() -> None:
    torch.manual_seed(0)
    net, other = nn.ModuleDict({"a": nn.Conv2d(12, 16, 3)}), nn.ModuleDict({"a": nn.Conv2d(12, 16, 3)})
    measures = esdmon.analyze(net, reference=other, measures=MEASURES)["a"].measures
    slices, others = (model.get_parameter("a.weight").flatten(2).permute(2, 0, 1) for model in (net, other))
    shares = [overlap(now, before) for now, before in zip(slices, others, strict=True)]
    assert measures["reference_overlap"] == pytest.approx(sum(shares) / 9, abs=1e-4)


def test_a_lower_rank_has_fewer_directions() -> None:
    before = structured(48, 96)
    u, sigma, v = torch.linalg.svd(before, full_matrices=False)
    low = (u[:, :3] * sigma[:3]) @ v[:3]
    report = esdmon.analyze({"a.weight": low.double()}, reference={"a.weight": before}, measures=MEASURES)
    assert report["a"].measures["reference_overlap"] == pytest.approx(1, abs=1e-5)
    assert report["a"].measures["intruders"] == 0
    assert report["a"].nulls["reference_overlap"] == pytest.approx(3 / 48)
