"""Alerts that stop the Trainer of Lightning, or have it save a checkpoint."""

import math
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.cloud_io import get_filesystem

from esdmon.errors import InputError
from esdmon_lightning import SpectralMonitor
from tests.integrations.lightning_runs import Small, batches, trainer
from tests.integrations.runs import monitor_of
from tests.rules import ALWAYS

# Lightning warns of much: few workers, small batches, its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("stop_on", "batches_run"), [((), 20), ("always", 5)], ids=["not-asked", "asked"])
def test_an_alert_of_stop_on_ends_the_fit(stop_on: Any, batches_run: int, tmp_path: Path) -> None:
    """At the due step of the alert; without `stop_on` the fit runs to its end."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS], stop_on=stop_on)
    fit = trainer(tmp_path, callback)
    fit.fit(Small(), batches())
    assert fit.global_step == batches_run
    assert [alert.rule for alert in monitor_of(callback).alerts] == ["always"]


def test_a_file_of_alert_settings_can_end_the_fit(tmp_path: Path) -> None:
    """At the first reading of a NaN; an unknown key in the file raises."""
    file = tmp_path / "alerts.toml"
    file.write_text('[rules.non_finite]\nseverity = "critical"\n[actions]\nstop_training = ["non_finite"]')
    callback = SpectralMonitor(every=5, budget=None, sinks=None, alerts=str(file))
    model = Small()
    model.get_parameter("net.0.weight").data[0, 0] = math.nan
    fit = trainer(tmp_path, callback)
    fit.fit(model, batches())
    assert fit.global_step == 5
    (alert,) = monitor_of(callback).alerts
    assert (alert.rule, alert.severity, alert.layers) == ("non_finite", "critical", ("net.0", "net.2"))
    file.write_text("[rules.non_finit]")
    with pytest.raises(InputError, match=r"alerts\.toml: unknown key 'rules\.non_finit'.*Did you mean 'non_finite'"):
        SpectralMonitor(alerts=str(file))


@pytest.mark.parametrize("save_on", [(), ("always",)], ids=["not-asked", "asked"])
def test_an_alert_of_save_on_saves_a_checkpoint(save_on: Any, tmp_path: Path) -> None:
    """Once for an alert; Lightning can resume from it."""
    callback = SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS], save_on=save_on)
    trainer(tmp_path, callback).fit(Small(), batches())
    saved = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.ckpt"))
    assert saved == (["esdmon-checkpoints/step=5.ckpt"] if save_on else [])
    if save_on:
        again = trainer(tmp_path, SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS]))
        again.fit(Small(), batches(), ckpt_path=tmp_path / saved[0])
        assert again.global_step == 20
        assert [alert.step for callback in again.callbacks for alert in callback.monitor.alerts] == [5]  # type: ignore[attr-defined]


def test_a_checkpoint_is_saved_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Lightning saves its own, if the folder of the Trainer is in a bucket."""
    monkeypatch.chdir(tmp_path)
    callback = SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS], save_on=["always"])
    trainer("memory://bucket", callback).fit(Small(), batches())
    assert get_filesystem("memory://bucket").exists("/bucket/esdmon-checkpoints/step=5.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_saved_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is one warning."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    fit = trainer(tmp_path, SpectralMonitor(every=5, budget=None, sinks=None, alerts=[ALWAYS], save_on=["always"]))
    monkeypatch.setattr(fit, "save_checkpoint", full)
    fit.fit(Small(), batches())
    assert fit.global_step == 20
    assert caplog.text.count("the checkpoint of save_on= could not be saved: OSError") == 1
