"""A sink for a run of Weights & Biases that may be begun after `watch()`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, final

from esdmon.notice import notice
from esdmon.present import prepare
from esdmon_wandb.sink import WandbSink

if TYPE_CHECKING:
    from esdmon import Alert, Report


@final
class LateWandbSink:
    """Writes to the run that is active when a reading is written, and nowhere where there is none."""

    def __init__(self) -> None:
        self._sink: WandbSink | None = None
        self._run: object = None
        prepare()  # before training, as a sink that has its run would

    def write(self, report: Report) -> None:
        """Write to the run, if there is one now; another than before is begun with."""
        run = getattr(sys.modules.get("wandb"), "run", None)  # who has not imported it has not begun a run
        if run is not self._run:
            self.close()
            self._run = run
        if self._sink is None and run is not None:
            self._sink = WandbSink(run)
            notice(f"the W&B run {run.id} was begun after watch(): readings go there too, from step {report.step} on.")
        if self._sink is not None:
            self._sink.write(report)

    def catch_up(self) -> bool:
        """Draw one picture. Return whether more wait."""
        return self._sink is not None and self._sink.catch_up()

    def alert(self, alert: Alert) -> None:
        """Send an alert of the run."""
        if self._sink is not None:
            self._sink.alert(alert)

    def rewind(self, step: int) -> None:
        """Forget what was read after a step."""
        if self._sink is not None:
            self._sink.rewind(step)

    def flush(self) -> None:
        """Do nothing: the run writes by itself."""

    def close(self) -> None:
        """Put the tables into the run."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()
