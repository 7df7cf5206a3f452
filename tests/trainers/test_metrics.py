"""The summary as metrics of a Trainer."""

import math
from dataclasses import replace

import pytest
import torch

import esdmon
from esdmon.options import WatchOptions
from esdmon.trainers.metrics import SummaryMetrics, saved_metrics
from tests.rules import ALWAYS


@pytest.fixture
def metrics() -> SummaryMetrics:
    return SummaryMetrics([ALWAYS.name], WatchOptions().chosen_measures)


def test_all_metrics_exist_before_the_first_reading(metrics: SummaryMetrics) -> None:
    """Medians are NaN, counts 0."""
    before = metrics.of(None, {})
    assert math.isnan(before["esdmon_summary/alpha_median"])
    assert before["esdmon_summary/alert_always"] == 0
    report = esdmon.analyze(torch.nn.Linear(96, 64))
    assert metrics.of(report, before).keys() == before.keys()


def test_a_metric_that_a_report_lacks_keeps_its_value(metrics: SummaryMetrics) -> None:
    """Those it has are replaced; alpha of noise is the median over all layers."""
    report = esdmon.analyze(torch.nn.Linear(96, 64))
    assert "alpha_median" not in report.summary
    numbers = metrics.of(report, {"esdmon_summary/overhead": 0.5, "esdmon_summary/stable_rank_median": -1.0})
    assert numbers["esdmon_summary/overhead"] == 0.5
    assert numbers["esdmon_summary/stable_rank_median"] == report.summary["stable_rank_median"]
    assert numbers["esdmon_summary/alpha_median"] == report.layers[0].measures["alpha"]


def test_updates_and_products_are_not_in_the_alpha_of_all_layers(metrics: SummaryMetrics) -> None:
    """Nor in any other number of the summary."""
    report = esdmon.analyze(torch.nn.Linear(96, 64))
    (layer,) = report
    update = replace(layer, name="update", view="update", measures={**layer.measures, "alpha": 99.0})
    both = replace(report, layers=(layer, update))
    assert metrics.of(both, {})["esdmon_summary/alpha_median"] == layer.measures["alpha"]


@pytest.mark.parametrize("saved", [5, None, [1.0], {1: 2.0}, {"a": "x"}])
def test_damaged_metrics_of_a_checkpoint_are_dropped(saved: object) -> None:
    """Only numbers by name are kept."""
    assert saved_metrics(saved) == {}
    assert saved_metrics({"a": 1.5, "b": None}) == {"a": 1.5}
