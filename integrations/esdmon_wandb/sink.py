"""Records to a run of Weights & Biases."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, final

import numpy as np

from esdmon.errors import InputError, MissingExtraError
from esdmon.picture import Showing, draw_esd
from esdmon.tags import scalars

if TYPE_CHECKING:
    import wandb

    from esdmon import Alert, Report

STEP = "esdmon/step"
_LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "ERROR"}


@final
class WandbSink:
    """Writes to a run that someone else has begun, and leaves it open.

    Keys are the tags of `esdmon.tags`. Each reading is one row, drawn over `esdmon/step`,
    an axis of its own: a row whose `step=` is older than the run's last is dropped by W&B without a word, and a reading
    may come late. Each key is tied to that axis by its exact name when it is first used, since of two patterns that fit
    (a Trainer's `*`, and one of ours) either may win.

    Args:
        run: the run.
        host_axis: the key of the host's own axis (`trainer/global_step`), under which readings stand as well.
    """

    def __init__(self, run: wandb.Run, *, host_axis: str = "") -> None:
        self._run = run
        self._host_axis = host_axis
        self._defined: set[str] = set()
        self._showing = Showing()
        self._report: Report | None = None
        run.define_metric(STEP, hidden=True)

    @classmethod
    def open(cls, target: str) -> WandbSink:
        """A sink for the run that is active.

        Raises:
            MissingExtraError: without wandb.
            InputError: without a run, or with a target, which there is none of.
        """
        try:
            import wandb  # noqa: PLC0415 -- optional
        except ImportError as error:
            raise MissingExtraError("the sink wandb", "wandb", "wandb") from error
        if target:
            raise InputError(f"wandb takes no target, got 'wandb:{target}': it writes to the run that is active")
        if wandb.run is None:
            raise InputError("wandb has no active run: call wandb.init() before")
        return cls(wandb.run)

    def write(self, report: Report) -> None:
        """One row: numbers; histograms at every fifth reading of a layer; pictures where a phase has changed."""
        import wandb  # noqa: PLC0415 -- optional

        self._report = report
        row: dict[str, Any] = dict(scalars(report))
        for layer in self._showing.histograms(report):
            if layer.esd is not None:
                histogram = np.asarray(layer.esd.counts), np.asarray(layer.esd.edges)
                row[f"esdmon_esd/{layer.name}"] = wandb.Histogram(np_histogram=histogram)
        if find_spec("matplotlib") is not None:
            changed = [layer for layer in self._showing.changed(report) if layer.esd is not None]
            row |= {f"esdmon_picture/{layer.name}": wandb.Image(draw_esd(layer)) for layer in changed}
        for key in row.keys() - self._defined:
            self._run.define_metric(key, step_metric=STEP, summary="last")
        self._defined |= row.keys()
        axes = (STEP, self._host_axis) if self._host_axis else (STEP,)
        self._run.log(row | dict.fromkeys(axes, report.x))

    def alert(self, alert: Alert) -> None:
        """An alert of the run. W&B would drop a second one of a title within a minute; ours are few as it is."""
        title = f"esdmon: {alert.rule} {alert.state}"
        self._run.alert(title=title, text=alert.message, level=_LEVELS[alert.severity], wait_duration=1)

    def flush(self) -> None:
        """Nothing to do: the run writes by itself."""

    def close(self) -> None:
        """The phases of all layers as a table; the run itself is not ours to end."""
        if self._report is None:
            return
        import wandb  # noqa: PLC0415 -- optional

        columns: list[Any] = ["layer", "phase", "alpha", "alpha is meaningful", "MP soft rank", "step", "explanation"]
        rows: list[Any] = [
            [
                layer.name,
                layer.phase.value,
                layer.measures.get("alpha"),
                layer.alpha_is_meaningful,
                layer.measures.get("mp_soft_rank"),
                layer.step,
                layer.explanation or layer.reason,
            ]
            for layer in self._report
        ]
        self._run.log({"esdmon_phases": wandb.Table(columns=columns, data=rows)})
