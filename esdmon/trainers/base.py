"""Define `MonitorCallback`, the part of a callback that is the same for all Trainers.

A callback never raises during training: a part that fails is skipped, and logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn, Unpack

from esdmon.errors import InputError, UnwatchableError
from esdmon.isolation import Faults, describe
from esdmon.notice import notice
from esdmon.options import WatchKeywords, shows_options
from esdmon.options.sinks import Sinks
from esdmon.runtime.delivery import close_sinks
from esdmon.runtime.monitor import Monitor
from esdmon.schedule import Schedule, union
from esdmon.trainers.optimizers import readable
from esdmon.trainers.options import CallbackOptions
from esdmon.trainers.sinks import HostSinks, open_sinks
from esdmon.watching import attach

_log = logging.getLogger("esdmon")


class MonitorCallback:
    """The base of a callback: its options, and the monitor of the current run.

    A copy or a pickle of a callback has its options only: the monitor belongs to one run.
    """

    monitor: Monitor | None
    """None until training starts; closed when it has ended."""
    _options: CallbackOptions

    @shows_options
    def __init__(self, every: int | Schedule = 200, *, sinks: Sinks = "auto", **options: Unpack[WatchKeywords]) -> None:
        super().__init__()
        self._options = CallbackOptions(every=every, sinks=sinks, options=options)
        self._reset()

    @property
    def options(self) -> Mapping[str, Any]:
        """Return `every`, and the options that differ from their default, by name."""
        return self._options.chosen

    def __getstate__(self) -> dict[str, Any]:
        """Return the options."""
        return {"_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the options, as a callback that was just constructed with them."""
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        """Reset the attributes that belong to a run. Subclasses extend it."""
        self.monitor = None

    @property
    def _strict(self) -> bool:
        return self._options.checked.strict

    def _begin(
        self, model: Any, optimizers: Any, *, steps: int, writes: HostSinks | None, extra: Schedule | None = None
    ) -> None:
        """Watch a model from now on; if the model cannot be watched, log a warning and set `monitor` to None.

        Args:
            model: the model that trains.
            optimizers: the optimizers of the Trainer, one or several, of any kind.
            steps: the Trainer's steps so far.
            writes: the loggers and folders of the Trainer; None to write nothing.
            extra: a function that returns whether the Trainer needs a reading at a step, besides those of `every`.

        Raises:
            InputError: for options that cannot be used with this model.
        """
        self.monitor = None
        checked = self._options.checked
        opened = [] if writes is None else open_sinks(self._options, writes)
        every = checked.every if extra is None else union(checked.every, extra)
        try:
            options = replace(checked, every=every, sinks=[sink for _, sink in opened])
            self.monitor = attach(
                model, readable(optimizers), options, hook=False, first_step=steps, shares_requests=False
            )
        except Exception as error:
            close_sinks([(name, sink) for name, sink in opened if not isinstance(sink, str)], Faults(), steps)
            is_of_options = isinstance(error, InputError) and not isinstance(error, UnwatchableError)
            if is_of_options or self._strict:
                raise
            why = str(error) if isinstance(error, UnwatchableError) else describe(error)
            _log.warning("esdmon: the model cannot be watched: %s. Training continues without esdmon.", why)
            return
        if opened:
            notice(f"readings go to {', '.join(name for name, _ in opened)}")

    def _new_steps(self, global_step: int) -> int:
        """Return the host's steps that were not counted yet; 0 without a monitor."""
        return 0 if self.monitor is None else global_step - self.monitor.steps

    def _requests(self) -> tuple[bool, bool]:
        """Return whether alerts request a stop, and whether they request a checkpoint; known on rank 0 only."""
        return (False, False) if self.monitor is None else (self.monitor.should_stop, self.monitor.take_save_request())

    def _resume(self, state: Mapping[str, Any], *, steps: int) -> None:
        """Continue from the state in a checkpoint, at the Trainer's step; if it cannot be used, log a warning."""
        if self.monitor is None:
            return
        try:
            self.monitor.load_state_dict(dict(state) | {"steps": steps})
        except Exception as error:
            if self._strict:
                raise
            _log.warning(
                "esdmon: the state in the checkpoint of step %d cannot be loaded: %s. Readings continue; alerts and "
                "earlier readings are not restored.",
                steps,
                describe(error),
            )

    def _close(self, *, is_complete: bool = True) -> None:
        """Close the monitor; `is_complete` is False if the training was interrupted, or is a test of the loop."""
        if self.monitor is not None:
            self.monitor.close(is_complete=is_complete)


def run_of(state: Mapping[str, Any] | None) -> str:
    """Return the id of the run that saved a state; "" if there is no state, or it has no id."""
    run = None if state is None else state.get("run")
    return run if isinstance(run, str) else ""


def refuse_second() -> NoReturn:
    """Raise for a second callback on one Trainer.

    Raises:
        InputError: always.
    """
    raise InputError("there are two SpectralMonitors on this Trainer, and both would write the same series: remove one")
