"""Records to a run of Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from esdmon.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import wandb

    from esdmon import Alert, Report

STEP = "esdmon/step"
_LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "ERROR"}


@final
class WandbSink:
    """Writes to a run that someone else has begun, and leaves it open.

    Keys are the tags of `Report.scalars`. Each reading is one row, drawn over `esdmon/step`,
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
        """One row."""
        row = report.scalars()
        for key in row.keys() - self._defined:
            self._run.define_metric(key, step_metric=STEP, summary="last")
        self._defined |= row.keys()
        axes = (STEP, self._host_axis) if self._host_axis else (STEP,)
        self._run.log(row | dict.fromkeys(axes, report.x))

    def alert(self, alert: Alert) -> None:
        """An alert of the run: W&B sends at most one a minute for each title, which is the rule."""
        title = f"esdmon: {alert.rule} {alert.state}"
        self._run.alert(title=title, text=alert.message, level=_LEVELS[alert.severity])

    def flush(self) -> None:
        """Nothing to do: the run writes by itself."""

    def close(self) -> None:
        """Nothing to do: the run is not ours to end."""
