"""Trackers of Accelerate other than those that esdmon knows."""

import logging
import re
from typing import Any

import accelerate
import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch import nn

import esdmon
from esdmon_transformers import tracker_sinks

pytestmark = pytest.mark.filterwarnings("ignore")  # accelerate and its dependencies warn of themselves


class Strict(GeneralTracker):  # type: ignore[misc]  # accelerate is half typed
    """Accept the names that MLflow accepts, and reject the whole call for any other."""

    name = "strict"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: Any) -> None:
        pass

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        for name in values:
            if not re.fullmatch(r"[/\w.\- :]*", name):
                msg = f"Invalid metric name: {name!r}"
                raise ValueError(msg)
        self.rows.append(values)


class Deep(nn.Module):
    """A model with enough layers for charts by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])


def tracked() -> tuple[accelerate.Accelerator, Strict]:
    tracker = Strict()
    accelerator = accelerate.Accelerator(log_with=tracker, cpu=True)
    accelerator.init_trackers("run")
    return accelerator, tracker


@pytest.mark.parametrize("max_tags", [None, 32, 16])
def test_a_tracker_that_is_strict_about_names_takes_every_reading(max_tags: int | None) -> None:
    accelerator, tracker = tracked()
    sinks = tracker_sinks(accelerator)
    with esdmon.watch(Deep(), every=1, budget=None, max_tags=max_tags, sinks=sinks, alerts=None) as monitor:
        monitor.step(2)
    assert monitor.errors == ()
    (row,) = tracker.rows
    assert "esdmon_summary/layers_bulk-spikes" in row
    assert ("esdmon_stable_rank/layers.all" in row) == (max_tags == 16)


def test_two_models_in_a_tracker_do_not_share_names(caplog: pytest.LogCaptureFixture) -> None:
    """The tags of the second have a number, and one log line says so."""
    accelerator, tracker = tracked()
    torch.manual_seed(0)
    monitors = [
        esdmon.watch(Deep(), every=1, budget=None, sinks=tracker_sinks(accelerator), alerts=None) for _ in range(2)
    ]
    with caplog.at_level(logging.WARNING, "esdmon"):
        for monitor in (*monitors, *monitors):
            monitor.step()
    first, second, *_ = tracker.rows
    assert "esdmon_frobenius_norm/layers.0" in first
    assert "esdmon2_frobenius_norm/layers.0" in second
    assert not first.keys() & second.keys()
    (line,) = [message for message in caplog.messages if "another monitor" in message]
    assert "another monitor writes to this Strict already: tags of this one begin with esdmon2_" in line
    for monitor in monitors:
        monitor.close()
