"""Columns that a user chooses: any key of a record, shown and sorted as it should be."""

import math

import pytest
import torch

import esdmon
from esdmon.errors import InputError
from esdmon.plugins import Plugins
from esdmon.present.columns import COMPARISON, TABLE, choose_columns, measures_in, sort_layers
from esdmon.records import LayerReport, Report
from esdmon.records.layer import RECORD_KEYS

KNOWN = [name for name, measure in Plugins().measures.items() if not measure.needs]


@pytest.fixture(scope="module")
def report() -> Report:
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.10.weight": (90, 70), "b.2.weight": (80, 60), "tiny.weight": (4, 4)}
    return esdmon.analyze({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def cells(report: Report, name: str) -> list[str]:
    (column,) = choose_columns("--columns", [name], KNOWN)
    return [column.show(layer) for layer in report]


@pytest.mark.parametrize("name", [*TABLE, *COMPARISON, *RECORD_KEYS, *KNOWN, "alpha_null"])
def test_every_key_of_a_record_is_a_column(report: Report, name: str) -> None:
    """Each has one line of text for a layer that was read, and sorts all layers."""
    (column,) = choose_columns("--columns", [name], KNOWN)
    assert all(column.show(layer) and "\n" not in column.show(layer) for layer in report if layer.status == "ok")
    assert {layer.name for layer in sort_layers(report.layers, column)} == {layer.name for layer in report}


def test_what_the_cells_say(report: Report) -> None:
    """With the ranks of which alerts speak; a layer without a reading has its name, status and reason."""
    assert cells(report, "hard_rank") == ["70/70", "60/60", ""]
    assert cells(report, "shape") == ["90 × 70", "80 × 60", ""]
    assert cells(report, "type") == ["linear", "linear", "linear"]
    assert cells(report, "phase")[2] == "skipped"
    assert cells(report, "reason") == ["–", "–", "4 eigenvalues; at least 10 are needed"]
    assert cells(report, "n_parameters") == ["6300", "4800", "16"]
    assert cells(report, "update_ratio")[0] == cells(report, "moved")[0] == "–"


def test_an_unknown_column_is_refused_with_the_nearest() -> None:
    """Or with the usual ones."""
    with pytest.raises(InputError, match=r"unknown column 'stable_rnk' in --sort\. Did you mean 'stable_rank'"):
        choose_columns("--sort", ["stable_rnk"], KNOWN)
    with pytest.raises(InputError, match=r"unknown column 'xyz' in --columns\. The usual ones are: layer, type"):
        choose_columns("--columns", ["xyz"], KNOWN)


def test_sorting(report: Report) -> None:
    """Numbers in names count as numbers; layers without a value come last in both directions."""
    (layer,) = choose_columns("--sort", ["layer"], KNOWN)
    (norm,) = choose_columns("--sort", ["stable_rank"], KNOWN)
    assert [each.name for each in sort_layers(report.layers, layer)] == ["b.2", "b.10", "tiny"]
    rising = [each.name for each in sort_layers(report.layers, norm)]
    falling = [each.name for each in sort_layers(report.layers, norm, descending=True)]
    assert rising[2] == falling[2] == "tiny"
    assert rising[:2] == falling[1::-1]
    ranks = [report[name].measures["stable_rank"] for name in rising[:2]]
    assert ranks == sorted(ranks)


def test_measures_that_a_column_needs() -> None:
    """A measure, and that of a null."""
    columns = choose_columns("--columns", ["layer", "alpha", "stable_rank_null"], KNOWN)
    assert measures_in(columns, KNOWN) == ["alpha", "stable_rank"]


def test_a_weight_that_was_zero_has_moved_by_an_infinite_share() -> None:
    """It is shown as such, and is the largest; one that is not known is a dash, and comes last."""
    (moved,) = choose_columns("--columns", ["moved"], KNOWN)
    from_zero, unknown = (LayerReport("a", "ok", 1, update_ratio=ratio) for ratio in (math.inf, math.nan))
    assert (moved.show(from_zero), moved.show(unknown)) == ("∞", "–")
    assert moved.key(from_zero) == (math.inf,)
    assert moved.key(unknown) is None
