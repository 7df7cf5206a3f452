"""esdmon as a callback of Lightning."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from esdmon.errors import InputError, MissingExtraError
from esdmon.hosts import HostOptions
from esdmon_lightning.loggers import sink_for

if TYPE_CHECKING:
    from esdmon import Monitor


def _callback() -> Any:
    """`Callback` of the package that is in use already, or else of either: each Trainer takes the other's."""
    packages = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(packages, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtraError("esdmon_lightning", "lightning", "lightning")


class SpectralMonitor(_callback()):  # type: ignore[misc]  # one of two packages, known at run time
    """Watches the spectra of the LightningModule while it is fitted.

    Readings go to the Trainer's loggers, under the user's own loss, and the summary to `trainer.callback_metrics` as
    well, for `ModelCheckpoint(monitor="esdmon_summary/alpha_median")` and the like. Steps are the Trainer's
    `global_step`, which grows by one for each of several optimizers. A checkpoint of the Trainer holds the state.

    Args:
        every: steps between readings, or a function of the step.
        sinks: "auto": the Trainer's loggers. Others as in `esdmon.watch`.
        options: as in `esdmon.watch`: budget, mode, alerts, layers, … An alert of `stop_on=` ends the training, one of
            `save_on=` saves a checkpoint in `esdmon-checkpoints/`, at a due step and on all ranks.

    Raises:
        InputError: for options that cannot be used, when it is made.
        MissingExtraError: without Lightning, when it is imported.
    """

    def __init__(self, every: Any = 200, *, sinks: Any = "auto", **options: Any) -> None:
        super().__init__()
        self._given = HostOptions(every=every, sinks=sinks, options=options)
        self._state: dict[str, Any] = {}
        self.monitor: Monitor | None = None
        """None until training starts; closed when it has ended."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a second one on the same Trainer: both would write the same series."""
        if sum(isinstance(callback, SpectralMonitor) for callback in trainer.callbacks) > 1:
            raise InputError("there are two SpectralMonitors on this Trainer: give it one")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin: the model is in its place, the optimizers are made, a checkpoint is loaded."""
        writes = trainer.is_global_zero and not trainer.fast_dev_run
        steps = trainer.global_step
        self.monitor = self._given.watch(
            pl_module,
            trainer.optimizers,
            first_step=steps,
            hosts_own=(lambda: [sink_for(logger) for logger in trainer.loggers]) if writes else None,
        )
        if self._state:
            self.monitor.load_state_dict(self._state | {"steps": steps})

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Count the optimizer steps of the batch; in the midst of an accumulation there are none."""
        monitor = self.monitor
        steps = 0 if monitor is None else trainer.global_step - monitor.steps
        if monitor is None or steps <= 0:
            return
        before = monitor.report
        # Where Lightning draws what is logged in this batch.
        drawn_at = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
        due = monitor.step(steps, host_step=drawn_at)
        if trainer.world_size == 1:
            if monitor.report is not before:
                self._tell(trainer, *self._findings(monitor))
        elif due:
            self._tell(trainer, *trainer.strategy.broadcast(self._findings(monitor)))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write what was read."""
        self._close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close, while the loggers are alive."""
        self._close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close, in case nothing else did."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """For the Trainer's checkpoint."""
        return self._state if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the Trainer's checkpoint."""
        self._state = state_dict

    def _findings(self, monitor: Monitor) -> tuple[dict[str, float], bool, bool]:
        summary = {} if monitor.report is None else monitor.report.summary
        return summary, monitor.should_stop, monitor.take_save_request()

    def _tell(self, trainer: Any, summary: dict[str, float], stop: bool, save: bool) -> None:  # noqa: FBT001 -- of a tuple
        for name, value in summary.items():
            trainer.callback_metrics[f"esdmon_summary/{name}"] = torch.tensor(value)
        if save:
            folder = Path(trainer.log_dir or trainer.default_root_dir) / "esdmon-checkpoints"
            trainer.save_checkpoint(folder / f"step={trainer.global_step}.ckpt")
        if stop:
            trainer.should_stop = True

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
            self._state = self.monitor.state_dict()
