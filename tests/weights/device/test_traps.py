"""Traps taken apart, and near-dead rows, through the reader, against numpy in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import esdmon
from esdmon.alerts.rules.traps import what_traps
from esdmon.records import LayerReport


def read(weight: torch.Tensor) -> LayerReport:
    return esdmon.analyze({"w": weight}).layers[0]


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(300, 120), (120, 300), (4000, 40)])
def test_huge_elements_are_found_where_they_are(rows: int, columns: int, dtype: torch.dtype) -> None:
    """In the weight as its owner indexes it, dead rows included."""
    weight = matrix(rows, columns)
    weight[5] = 0
    weight[rows - 9, 17], weight[11, 3] = -70.0, 50.0
    weight = weight.to(dtype)
    measures = read(weight).measures
    exact = weight.double().numpy()
    away = np.abs(exact - exact.mean())
    limit = ((rows - 1) * columns) ** 0.25 * exact.std()
    assert measures["trap"] > 1
    assert measures["trap_is_local"] == 1
    assert measures["trap_count"] == (away > limit).sum() == 2
    assert (measures["trap_row"], measures["trap_column"], measures["trap_value"]) == (rows - 9, 17, -70)
    share = ((away[away > limit] ** 2).sum() + exact.size * exact.mean() ** 2) / (exact**2).sum()
    assert measures["trap_share"] == pytest.approx(share, rel=1e-4)
    assert f"local: -70 in row {rows - 9}, column 17 and 1 others" in what_traps(read(weight))


def test_a_mean_is_a_diffuse_trap() -> None:
    weight = matrix(200, 100) + 0.3
    layer = read(weight)
    exact = weight.double().numpy()
    assert layer.measures["trap_is_local"] == layer.measures["trap_count"] == 0
    assert layer.measures["trap_mean"] == pytest.approx(exact.mean() / exact.std(), rel=1e-4)
    assert layer.measures["trap_share"] == pytest.approx(exact.mean() ** 2 / (exact**2).mean(), rel=1e-3)
    assert what_traps(layer).startswith("diffuse: the mean is 0.29 standard deviations, 8% of")


def test_without_a_trap_there_is_nothing_to_take_apart() -> None:
    layer = read(matrix(200, 100))
    assert layer.measures["trap"] < 1
    assert not [name for name in layer.measures if name.startswith("trap_")]
    assert what_traps(layer).startswith("above 1 the mean")
    assert what_traps(replace(layer, measures={})).startswith("above 1 the mean")


def test_of_a_convolution_the_place_is_that_of_its_kernel_position() -> None:
    convolution = torch.nn.Conv2d(40, 48, 3)
    with torch.no_grad():
        convolution.weight[7, 30, 1, 2] = 90
    layer = esdmon.analyze(convolution).layers[0]
    assert (layer.measures["trap_row"], layer.measures["trap_column"]) == (7, 30)
    assert layer.measures["trap_value"] == 90


def test_dead_and_near_dead_rows_and_columns_are_counted() -> None:
    """Zero, below 1e-3, and below a tenth of the median's rms, against numpy."""
    weight = matrix(300, 200)
    weight[:4] = 0
    weight[4:10] *= 1e-5
    weight[10:25] *= 0.05
    weight[:, 3:7] *= 0.02
    layer = read(weight)
    rms = np.sqrt((weight.double().numpy() ** 2).mean(axis=1))
    assert layer.measures["zero_rows"] == (rms < 1e-3 * np.median(rms)).sum() == 10
    assert layer.measures["weak_rows"] == (rms < 0.1 * np.median(rms)).sum() - 10 == 15
    assert (layer.measures["zero_columns"], layer.measures["weak_columns"]) == (0, 4)
    assert (layer.dead_rows, layer.dead_columns) == (10, 0)
