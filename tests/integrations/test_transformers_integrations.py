"""Write to integrations of the Trainer that have no sink of ours: their own `on_log` gets the numbers."""

import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from esdmon_transformers import SpectralMonitor
from tests.integrations.runs import monitor_of, summary_steps
from tests.integrations.transformers_runs import trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its dependencies warn of themselves

Rows = list[tuple[int, dict[str, float]]]


class Tracking(TrainerCallback):  # type: ignore[misc]  # transformers is half typed
    """An integration, which keeps what it is given with the Trainer's step."""

    rows: ClassVar[Rows] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.rows.append((state.global_step, dict(logs)))


class Silent(TrainerCallback):  # type: ignore[misc]
    """One that takes no numbers."""


def integrated(monkeypatch: pytest.MonkeyPatch, **kinds: type[TrainerCallback]) -> Rows:
    for name, kind in kinds.items():
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, kind)
    monkeypatch.setattr(Tracking, "rows", [])
    return Tracking.rows


def test_an_integration_gets_readings_as_from_the_trainers_log(tmp_path: Path, monkeypatch: Any) -> None:
    """At their steps; no row of the Trainer is lost, and its history has none of ours."""
    rows = integrated(monkeypatch, neptune=Tracking)
    callback = SpectralMonitor(every=4, budget=None, layers=["*.0.mlp.c_fc"])
    fit = trainer(tmp_path, callback, report_to=["neptune"], logging_steps=2)
    fit.train()
    assert monitor_of(callback).errors == ()
    ours = [(step, logs) for step, logs in rows if "esdmon_alpha/transformer.h.0.mlp.c_fc" in logs]
    assert [step for step, _ in ours] == [4, 8, 12]
    assert not [name for _, logs in ours for name in logs if not name.startswith("esdmon_")]
    assert [step for step, logs in rows if "loss" in logs] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in fit.state.log_history if "loss" in row] == [2, 4, 6, 8, 10, 12]
    assert not [name for row in fit.state.log_history for name in row if "esdmon" in name]
    assert not list(tmp_path.rglob("*.jsonl"))


def test_where_none_takes_numbers_a_file_does(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """One line says so."""
    integrated(monkeypatch, codecarbon=Silent)
    callback = SpectralMonitor(every=4, budget=None)
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, callback, report_to=["codecarbon"]).train()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "esdmon"]
    assert line.startswith("esdmon: report_to= names codecarbon, which has no active run or takes no numbers.")
    assert summary_steps(tmp_path / "esdmon-1" / "esdmon.jsonl") == [4, 8, 12]


def test_a_tracker_that_has_changed_gets_the_numbers(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """Parts of trackers that are not documented may go: the Trainer's integration is used then."""
    rows = integrated(monkeypatch, mlflow=Tracking)
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)  # an import of it fails
    callback = SpectralMonitor(every=6, budget=None, layers=["*.0.mlp.c_fc"])
    with caplog.at_level(logging.WARNING, "esdmon"):
        trainer(tmp_path, callback, report_to=["mlflow"]).train()
    assert [step for step, logs in rows if "esdmon_summary/seconds" in logs] == [6, 12]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "esdmon"]
    assert "the run of mlflow cannot be opened" in line
    assert "It gets numbers only." in line
