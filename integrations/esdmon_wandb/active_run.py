"""Write to a run of Weights & Biases that may begin after `watch()`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, final

from esdmon.notice import notice
from esdmon.present import prepare_drawing
from esdmon_wandb.sink import WandbSink

if TYPE_CHECKING:
    from esdmon import Alert, Report
    from esdmon.records.timeline import Timeline


@final
class ActiveRunSink:
    """Write each report to the run that is active at that moment; skip reports while there is none."""

    def __init__(self) -> None:
        self._sink: WandbSink | None = None
        self._run: object = None
        self._course: Timeline | None = None
        self._where = ""
        prepare_drawing()  # before training, as `WandbSink` does

    def write(self, report: Report) -> None:
        """Write to the active run; if another run was active before, close the sink for that one first."""
        run = getattr(sys.modules.get("wandb"), "run", None)  # without an import of wandb there is no run
        if run is not self._run:
            self.close()
            self._run = run
        if self._sink is None and run is not None:
            self._sink = WandbSink(run)
            if self._course is not None:
                self._sink.resume(self._course)
            notice(f"the W&B run {run.id} was begun after watch(): readings go there too, from step {report.step} on.")
        if self._sink is not None:
            self._sink.write(report)

    def catch_up(self) -> bool:
        """Draw one picture of the queue. Return True if there are more."""
        return self._sink is not None and self._sink.catch_up()

    def alert(self, alert: Alert) -> None:
        """Send an alert of the run."""
        if self._sink is not None:
            self._sink.alert(alert)

    def rewind(self, step: int) -> None:
        """Drop pictures of readings after a step."""
        if self._sink is not None:
            self._sink.rewind(step)

    def resume(self, course: Timeline) -> None:
        """Pass the history of the run on, now or when a W&B run begins."""
        self._course = course
        if self._sink is not None:
            self._sink.resume(course)

    def where(self) -> str:
        """Return the address of the last run that was written to; an empty text without one."""
        return self._where if self._sink is None else self._sink.where()

    def flush(self) -> None:
        """Do nothing: the run writes by itself."""

    def close(self) -> None:
        """Add the tables to the run's summary."""
        sink, self._sink = self._sink, None
        if sink is not None:
            self._course = None  # the next W&B run gets only the readings during its time
            self._where = sink.where()
            sink.close()
