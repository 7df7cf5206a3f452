"""A model or an estimator that holds its monitor is copied and pickled: for averages, folds, checkpoints."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon.sinks import MemorySink
from tests.jsonl import records_in


class Holder(nn.Module):
    """A model with its monitor in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(24, 16)
        self.monitor: Any = None


def saved(model: Holder) -> Holder:
    """Return the whole model, saved and loaded."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: Holder = torch.load(file, weights_only=False)
    return loaded


def pickled(model: Holder) -> Holder:
    """Return the model from its pickle, which the monitor makes hardly larger."""
    text = pickle.dumps(model)
    held, model.monitor = model.monitor, None
    try:
        assert len(text) < len(pickle.dumps(model)) + 100
    finally:
        model.monitor = held
    loaded: Holder = pickle.loads(text)  # noqa: S301 -- our own
    return loaded


def averaged(model: Holder) -> Any:
    """Return the copy that torch averages weights in."""
    return torch.optim.swa_utils.AveragedModel(model).module


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved, averaged])
@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_a_copy_of_what_holds_a_monitor_watches_nothing(
    copied: Any, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the weights; the monitor goes on, and its files are those of one run."""
    model = Holder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = MemorySink()
    sinks: list[Any] = [sink, f"jsonl:{tmp_path / 'a.jsonl'}", f"tensorboard:{tmp_path / 'tb'}"]
    model.monitor = esdmon.watch(
        model, optimizer, every=1, budget=None, mode=mode, sinks=sinks, on_alert=lambda _: None, strict=True
    )
    copies = []
    for _ in range(3):
        copies.append(copied(model))
        model.layer(torch.ones(1, 24)).square().sum().backward()
        optimizer.step()
    model.monitor.close()
    copies.append(copied(model))
    assert model.monitor.steps == 3
    assert [report.step for report in sink.reports] == [1, 2, 3]
    assert torch.equal(copies[-1].layer.weight, model.layer.weight)
    assert "copy" not in caplog.text
    for steps, each in enumerate(copies):
        other = each.monitor
        assert other.closed
        assert other.report is None
        assert other.steps == steps
        assert not other.step()
        assert not other.should_stop
        other.close()
        assert other.steps == steps
    assert caplog.text.count("the monitor is inactive, since it is a copy") == len(copies)
    lines = records_in(tmp_path / "a.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "layer"] == [1, 2, 3]
    assert len(list((tmp_path / "tb").rglob("*tfevents*"))) == 1


@pytest.mark.parametrize("ending", ["raise KeyboardInterrupt", ""])
def test_a_script_that_is_broken_off_is_not_advised(ending: str) -> None:
    """That nothing was read then says nothing of `every` or of the optimizer; only where it ends by itself."""
    script = f"""
        import esdmon, torch
        model = torch.nn.Linear(16, 24)
        monitor = esdmon.watch(model, torch.optim.SGD(model.parameters()), sinks=None)
        {ending}
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ("KeyboardInterrupt" in done.stderr) is bool(ending)
    assert ("nothing was read" in done.stderr) is not bool(ending)
