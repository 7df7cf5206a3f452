"""The callback for Lightning's Trainer."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from esdmon.errors import InputError, MissingExtraError
from esdmon.isolation import describe
from esdmon.options import WatchKeywords, shows_options
from esdmon.options.sinks import Sinks
from esdmon.schedule import Schedule
from esdmon.trainers.base import CopiedByOptions, own_jsonl, resume
from esdmon.trainers.options import CallbackOptions, HostsOwn
from esdmon_lightning.loggers import name_of, sink_for
from esdmon_lightning.looks import Looks

if TYPE_CHECKING:
    from esdmon import Monitor


_log = logging.getLogger("esdmon")


def _callback() -> Any:
    """Return `Callback` of the Lightning package that is imported already, or of any that is installed."""
    packages = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(packages, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtraError("esdmon_lightning", "lightning", "lightning")


@dataclass(frozen=True)
class _Left:
    """The final state of a fit, for the same Trainer to continue with the same model."""

    trainer: weakref.ref[Any]
    model: weakref.ref[Any]
    state: dict[str, Any]

    def is_of(self, trainer: Any, model: Any) -> bool:
        """Return whether Trainer, model and steps are those at the end of that fit."""
        return (self.trainer(), self.model(), self.state["steps"]) == (trainer, model, int(trainer.global_step))


class SpectralMonitor(CopiedByOptions, _callback()):  # type: ignore[misc]  # one of two packages, known at run time
    """Monitors the weight spectra of a LightningModule during `fit`.

    Readings are written to the Trainer's loggers, at the same steps as the loss; without loggers to
    `esdmon-1/esdmon.jsonl` in `default_root_dir`. Steps are the Trainer's `global_step`, which grows by one for each of
    several optimizers. Checkpoints of the Trainer hold the monitor's state.

    The summary is also in `trainer.callback_metrics`, as for `ModelCheckpoint(monitor="esdmon_summary/alpha_median")`.
    All its numbers are there from the start: medians of alpha, mp_soft_rank, stable_rank and matrix_entropy,
    `layers_…`, `alerts_firing`, `alert_<rule>`, `age_max`. If a callback or a scheduler monitors one of them, a reading
    is also taken at the last step before it is used. While no layer's alpha is meaningful, `alpha_median` here is the
    median over all layers.

    The object can be given to several Trainers, one after another: each fit is a separate run. It continues only from
    a checkpoint that the Trainer loads, or from the last fit of the same Trainer and model.

    Args:
        every: steps between readings, or a function that returns True at the steps to read.
        sinks: "auto" writes to the Trainer's loggers; other values as in `esdmon.watch`.
        options: as in `esdmon.watch`: budget, mode, alerts, layers, … An alert of `stop_on=` stops the training, and
            one of `save_on=` saves a checkpoint in `esdmon-checkpoints/`, at a due step and on all ranks.

    Raises:
        InputError: for invalid options, when the callback is constructed.
        MissingExtraError: if Lightning is not installed, on import.
    """

    monitor: Monitor | None
    """None until training starts; closed when it has ended."""
    _numbers: dict[str, float]
    _loaded: dict[str, Any]
    _left: _Left | None
    _run: tuple[weakref.ref[Any], weakref.ref[Any]] | None

    @shows_options
    def __init__(self, every: int | Schedule = 200, *, sinks: Sinks = "auto", **options: Unpack[WatchKeywords]) -> None:
        super().__init__()
        self._given = CallbackOptions(every=every, sinks=sinks, options=options)
        self._forget()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a second callback, which would write the same series; reset the state of another run."""
        if sum(isinstance(callback, SpectralMonitor) for callback in trainer.callbacks) > 1:
            raise InputError("there are two SpectralMonitors on this Trainer: give it one")
        if stage == "fit":
            # A checkpoint is loaded after this, so that what is here already came from elsewhere.
            self._loaded = {}
            self._close()
            if self._left is not None and not self._left.is_of(trainer, pl_module):
                self._left = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Create the monitor: model and optimizers exist, and a checkpoint is loaded."""
        writes = trainer.is_global_zero and not trainer.fast_dev_run and not getattr(trainer, "barebones", False)
        steps = trainer.global_step
        state = dict(self._loaded or (self._left.state if self._left else {}))
        self._loaded, self._left = {}, None
        self._looks = Looks.of(trainer)
        self._numbers = self._given.summary(None, _numbers(state.pop("summary", {})))
        self._given.warn_of_unknown(self._looks.monitored)
        self._run = weakref.ref(trainer), weakref.ref(pl_module)
        self.monitor = self._given.watch(
            pl_module,
            trainer.optimizers,
            first_step=steps,
            hosts_own=partial(_loggers, trainer) if writes else None,
            asks=self._looks,
        )
        if state and self.monitor is not None:
            resume(self.monitor, state, steps=steps, strict=self._given.is_strict)
        self._show(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the optimizer steps of the batch: none during gradient accumulation."""
        monitor = self.monitor
        steps = 0 if monitor is None else trainer.global_step - monitor.steps
        if monitor is None or steps <= 0:
            return
        before = monitor.report
        looked_at = self._looks.look(trainer, batch_idx)
        # Where Lightning draws what is logged in this batch.
        drawn_at = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
        due = monitor.step(steps, host_step=drawn_at)
        if looked_at:
            monitor.flush()  # the number is needed now, also where it is read in a thread
        if trainer.world_size == 1:
            if monitor.report is not before:
                self._publish(trainer, *self._findings(monitor))
        elif due:
            self._publish(trainer, *trainer.strategy.broadcast(self._findings(monitor)))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the monitor, which writes finished readings."""
        self._close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the monitor while the loggers are open."""
        self._close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close the monitor if nothing else did."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the Trainer's checkpoint."""
        if self._is_open and self.monitor is not None:
            return self.monitor.state_dict() | {"summary": self._numbers}
        return self._loaded or (self._left.state if self._left else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a loaded checkpoint; during a run, return to it if it is of another step."""
        if not self._is_open or self.monitor is None:
            self._loaded = state_dict
        elif state_dict.get("steps") != self.monitor.steps:
            state = {name: value for name, value in state_dict.items() if name != "summary"}
            resume(self.monitor, state, steps=state_dict.get("steps", 0), strict=self._given.is_strict)

    def _forget(self) -> None:
        self.monitor = None
        self._looks = Looks()
        self._numbers = {}
        self._loaded = {}
        self._left = self._run = None

    @property
    def _is_open(self) -> bool:
        return self._run is not None

    def _findings(self, monitor: Monitor) -> tuple[dict[str, float], bool, bool]:
        numbers = self._given.summary(monitor.report, self._numbers)
        return numbers, monitor.should_stop, monitor.take_save_request()

    def _publish(self, trainer: Any, numbers: dict[str, float], stop: bool, save: bool) -> None:  # noqa: FBT001 -- of a tuple
        self._numbers = numbers
        self._show(trainer)
        if save:
            self._save(trainer)
        if stop:
            trainer.should_stop = True

    def _save(self, trainer: Any) -> None:
        """Save a checkpoint. Where that fails on several ranks it raises: none of them may go on alone."""
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "esdmon-checkpoints"
        try:
            trainer.save_checkpoint(folder / f"step={trainer.global_step}.ckpt")
        except Exception as error:
            if trainer.world_size > 1 or self._given.is_strict:
                raise
            _log.warning(
                "esdmon: the checkpoint of save_on= could not be saved: %s. Training continues.", describe(error)
            )

    def _show(self, trainer: Any) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._numbers.items()})

    def _close(self) -> None:
        if self._run is None or self.monitor is None:
            return
        (trainer, model), self._run = self._run, None
        self.monitor.close()
        self._left = _Left(trainer, model, self.monitor.state_dict() | {"summary": self._numbers})


def _numbers(saved: object) -> dict[str, float]:
    """Return the valid numbers of a saved summary, which may be damaged."""
    if not isinstance(saved, Mapping):
        return {}
    return {name: float(value) for name, value in saved.items() if isinstance(name, str) and isinstance(value, float)}


def _loggers(trainer: Any) -> HostsOwn:
    """Return sinks for the Trainer's loggers, or a JSONL file in its folder if it has none."""
    if trainer.loggers:
        return _each(trainer.loggers)
    spec = own_jsonl(trainer.default_root_dir, goes_on=trainer.global_step > 0)
    return [(spec, lambda: spec)]


def _each(loggers: Any) -> Iterator[tuple[str, Any]]:
    for logger in loggers:
        yield name_of(logger), partial(sink_for, logger)
