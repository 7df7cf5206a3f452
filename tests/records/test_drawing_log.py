"""Plots in a process that logs at level DEBUG."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import font_manager
from torch import nn

import esdmon


@pytest.mark.parametrize(
    "draw", [lambda report: report.plot(), lambda report: report["0"].plot().figure], ids=["report", "layer"]
)
def test_a_plot_that_is_saved_writes_no_line_on_fonts(
    draw: Callable[[esdmon.Report], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither when it is made nor when the user saves it: 2000 lines hid those of the training."""
    torch.manual_seed(0)
    report = esdmon.analyze(nn.Sequential(nn.Linear(64, 48)))
    caplog.set_level(logging.DEBUG)
    font_manager.fontManager._findfont_cached.cache_clear()  # type: ignore[attr-defined]
    draw(report).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
    assert [record for record in caplog.records if record.name.startswith("matplotlib.font_manager")] == []
