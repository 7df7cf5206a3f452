"""Define the callback for the Trainer of Lightning."""

from __future__ import annotations

import logging
import sys
import weakref
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from esdmon.calls import explain_wrong_calls
from esdmon.errors import MissingExtraError
from esdmon.isolation import describe
from esdmon.trainers.base import MonitorCallback, refuse_second, run_of
from esdmon.trainers.metrics import SummaryMetrics, saved_metrics
from esdmon.trainers.sinks import HostSinks
from esdmon_lightning.loggers import name_of, sink_for
from esdmon_lightning.observers import Observers

if TYPE_CHECKING:
    from esdmon import Monitor


_log = logging.getLogger("esdmon")


def _callback() -> Any:
    """Return `Callback` of the package that is already imported, else of either one: both Trainers accept both."""
    packages = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(packages, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtraError("esdmon_lightning", "lightning", "lightning")


@dataclass(frozen=True)
class _FinishedFit:
    """The state at the end of a fit, from which the same Trainer continues if it fits the same model again."""

    trainer: weakref.ref[Any]
    model: weakref.ref[Any]
    state: dict[str, Any]

    def is_of(self, trainer: Any, model: Any) -> bool:
        """Return whether this Trainer has finished the fit, of this model, and is still at its last step."""
        return (self.trainer(), self.model(), self.state["steps"]) == (trainer, model, int(trainer.global_step))


@explain_wrong_calls
class SpectralMonitor(MonitorCallback, _callback()):  # type: ignore[misc]  # one of two packages, known at run time
    """Monitors the spectra of a LightningModule while it is fitted.

    Readings go to the Trainer's loggers, at the x-coordinate of the loss of the same batch. Without loggers they go to
    `esdmon-1/esdmon.jsonl` in `default_root_dir`, with a new number for each run. Steps are the Trainer's
    `global_step`, which counts the steps of each of several optimizers. Checkpoints contain the monitor's state.

    These keys are logged. In a JSONL the same numbers are fields of a record, without the prefixes.

    ==================================== ================================================= =================
    key                                  meaning                                           unit, range
    ==================================== ================================================= =================
    esdmon_<measure>/<layer>             a measure of a layer, listed in `esdmon.spectrum` of the measure
    esdmon_update_ratio/<layer>          ‖ΔW‖/‖W‖ since the last reading                   >= 0
    esdmon_phase/<layer>                 0 random-like to 5 rank-collapse, −1 unclassified code, −1 to 5
    esdmon_summary/alpha_median          median over the layers with a meaningful alpha    > 1
    esdmon_summary/mp_soft_rank_median   median over the layers, as are the next two       0 to 1
    esdmon_summary/stable_rank_median    Σλ/λmax                                           >= 1
    esdmon_summary/matrix_entropy_median entropy of the eigenvalues                        0 to 1
    esdmon_summary/alpha_spread          standard deviation over the meaningful alphas     >= 0
    esdmon_summary/hill_alpha_spread     standard deviation over all layers                >= 0
    esdmon_summary/layers_<phase>        layers in that phase                              count
    esdmon_summary/layers_not_ok         layers without a valid reading                    count
    esdmon_summary/layers_new            layers that were read at this step                count
    esdmon_summary/layers_extra          layers read now, between the scheduled steps      count
    esdmon_summary/layers_unchanged      layers with repeated values: they have not moved  count
    esdmon_summary/layers_waiting        layers not yet read because of the budget         count
    esdmon_summary/layers_screened       layers whose norms were computed, if any were     count
    esdmon_summary/alerts_firing         layers in which a rule fires, over all rules      count
    esdmon_summary/alert_<rule>          layers in which that rule fires                   count
    esdmon_summary/age_max               age of the oldest reading                         optimizer steps
    esdmon_summary/seconds               time that the readings of this step took          seconds
    esdmon_summary/overhead              share of the run's time that the monitor takes    >= 0
    ==================================== ================================================= =================

    The summary is also in `trainer.callback_metrics`, for `ModelCheckpoint(monitor="esdmon_summary/alpha_median")` and
    the like. All metrics exist from the start of training, as NaN until they are known. If a callback or a scheduler
    monitors a metric, an additional reading is taken at the last step before the metric is used. While no layer has a
    meaningful alpha, `alpha_median` in `trainer.callback_metrics` is the median over all layers.

    One callback can be used in several Trainers; each fit is a separate run. A fit continues from the checkpoint that
    the Trainer loads, or from the previous fit of the same Trainer and model.

    Args:
        every: steps between readings, or a function of the step that returns whether to read at it.
        sinks: "auto" writes to the Trainer's loggers. A name such as "jsonl:PATH", a sink of your own, or a list of
            them replaces these; a list may contain "auto" too. None writes nothing.
        options: the other options of `esdmon.watch`. `budget` limits the share of the run's time, `mode` sets whether a
            thread reads, `layers` and `exclude` select matrices, and `alerts` selects rules. An alert of a rule in
            `stop_on` ends the training on all ranks; one in `save_on` saves a checkpoint in `esdmon-checkpoints/`.

    Raises:
        InputError: for an unknown option or a value that cannot be used, when the callback is constructed.
        MissingExtraError: if Lightning is not installed, when this package is imported.
    """

    _metrics: SummaryMetrics
    _numbers: dict[str, float]
    """The metrics that `trainer.callback_metrics` has."""
    _loaded: dict[str, Any]
    """The state of a checkpoint that the next fit continues from."""
    _finished: _FinishedFit | None
    _run: tuple[weakref.ref[Any], weakref.ref[Any]] | None
    """The Trainer and the model of the current fit."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise for a second callback on the same Trainer; discard the state of other runs."""
        if sum(isinstance(callback, SpectralMonitor) for callback in trainer.callbacks) > 1:
            refuse_second()
        if stage == "fit":
            # A checkpoint is loaded after this, so a state that is already here belongs to another run.
            self._loaded = {}
            self._close()
            if self._finished is not None and not self._finished.is_of(trainer, pl_module):
                self._finished = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch. At this time the model is on its device, the optimizers exist, and a checkpoint is loaded."""
        writes = trainer.is_global_zero and not trainer.fast_dev_run and not getattr(trainer, "barebones", False)
        state = dict(self._loaded or self._left_state())
        self._loaded, self._finished = {}, None
        self._observers = Observers.of(trainer)
        self._numbers = self._metrics.of(None, saved_metrics(state.pop("summary", {})))
        self._metrics.warn_of_unknown(self._observers.monitored)
        self._run = weakref.ref(trainer), weakref.ref(pl_module)
        self._begin(
            pl_module,
            trainer.optimizers,
            steps=trainer.global_step,
            writes=_host_sinks(trainer, state) if writes else None,
            extra=self._observers,
        )
        if state:
            self._resume(state, steps=trainer.global_step)
        self._publish(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the optimizer steps of the batch; during an accumulation of gradients there are none."""
        monitor, steps = self.monitor, self._new_steps(trainer.global_step)
        if monitor is None or steps <= 0:
            return
        before = monitor.report
        is_read = self._observers.check(trainer, batch_idx)
        # The x-coordinate that Lightning uses for values logged in this batch.
        drawn_at = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
        due = monitor.step(steps, host_step=drawn_at)
        if is_read:
            monitor.flush()  # the metric is needed now, also if a thread reads
        if trainer.world_size == 1:
            if monitor.report is not before:
                self._apply(trainer, *self._findings(monitor))
        elif due:
            self._apply(trainer, *trainer.strategy.broadcast(self._findings(monitor)))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the monitor, so that the readings in flight are written."""
        self._close(is_complete=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the monitor while the loggers are open."""
        self._close(is_complete=not trainer.fast_dev_run)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close the monitor if no other hook did."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint of the Trainer: of the current run, or of the run to be continued."""
        if self._run is not None and self.monitor is not None:
            return self.monitor.state_dict() | {"summary": self._numbers}
        return self._loaded or self._left_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint for the next fit; during a fit, restore it if its step differs."""
        if self._run is None or self.monitor is None:
            self._loaded = state_dict
        elif state_dict.get("steps") != self.monitor.steps:
            state = {name: value for name, value in state_dict.items() if name != "summary"}
            self._resume(state, steps=state_dict.get("steps", 0))

    def _reset(self) -> None:
        super()._reset()
        checked = self._options.checked
        self._metrics = SummaryMetrics((rule.name for rule in checked.alert_config.rules), checked.chosen_measures)
        self._observers = Observers()
        self._numbers = {}
        self._loaded = {}
        self._finished = self._run = None

    def _left_state(self) -> dict[str, Any]:
        return self._finished.state if self._finished else {}

    def _findings(self, monitor: Monitor) -> tuple[dict[str, float], bool, bool]:
        """Return the metrics, and whether to stop and to save; all ranks use the values of rank 0."""
        return self._metrics.of(monitor.report, self._numbers), *self._requests()

    def _apply(self, trainer: Any, numbers: dict[str, float], stop: bool, save: bool) -> None:  # noqa: FBT001 -- of a tuple
        self._numbers = numbers
        self._publish(trainer)
        if save:
            self._save(trainer)
        if stop:
            trainer.should_stop = True

    def _save(self, trainer: Any) -> None:
        """Save a checkpoint. In a job of several ranks a failure raises, since no rank may continue alone."""
        folder = str(trainer.log_dir or trainer.default_root_dir).rstrip("/")  # it may be an address: not a `Path`
        try:
            trainer.save_checkpoint(f"{folder}/esdmon-checkpoints/step={trainer.global_step}.ckpt")
        except Exception as error:
            if trainer.world_size > 1 or self._strict:
                raise
            _log.warning(
                "esdmon: the checkpoint of save_on= could not be saved: %s. Training continues.", describe(error)
            )

    def _publish(self, trainer: Any) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._numbers.items()})

    def _close(self, *, is_complete: bool = True) -> None:
        if self._run is None or self.monitor is None:
            return
        (trainer, model), self._run = self._run, None
        super()._close(is_complete=is_complete)
        self._finished = _FinishedFit(trainer, model, self.monitor.state_dict() | {"summary": self._numbers})


def _host_sinks(trainer: Any, state: dict[str, Any]) -> HostSinks:
    return HostSinks(
        loggers=lambda: [(name_of(logger), partial(sink_for, logger)) for logger in trainer.loggers],
        folder=lambda: trainer.default_root_dir,
        resumed=run_of(state) if trainer.global_step > 0 else None,
    )
