"""esdmon as a callback of the Trainer of Hugging Face."""

from __future__ import annotations

import json
import logging
import uuid
import weakref
from collections.abc import Iterable
from functools import partial
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
from esdmon_transformers import folders
from esdmon_wandb import WandbSink

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingExtraError("esdmon_transformers", "transformers", "transformers") from error

if TYPE_CHECKING:
    from esdmon import Monitor

_log = logging.getLogger("esdmon")
_FILE = "esdmon.pt"


class SpectralMonitor(CopiedByOptions, TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers is half typed
    """Monitors the weight spectra of the model that a Hugging Face Trainer trains.

    Steps are the Trainer's `global_step`. Readings are written to the loggers of `report_to`: to TensorBoard in a
    subfolder of the Trainer's, since its writer is not accessible and two writers in one folder lose data; to the
    Trainer's run of Weights & Biases, in its rows. Without either, they are written to `esdmon-1/esdmon.jsonl` in
    `output_dir`, with a new number for each run. Each checkpoint holds the monitor's state in `esdmon.pt`, matched by
    an id in the Trainer's state file.

    Each `train()` is a separate run, also an attempt of `auto_find_batch_size` and a trial of a search. With
    `restore_callback_states_from_checkpoint` the options are those of the checkpoint; options that JSON cannot hold,
    such as functions and sinks, are taken from the callback that the Trainer was given.

    Args:
        every: steps between readings, or a function that returns True at the steps to read.
        sinks: "auto" writes to the loggers of `report_to`; other values as in `esdmon.watch`.
        options: as in `esdmon.watch`: budget, mode, alerts, layers, … An alert of `stop_on=` stops the training, and
            one of `save_on=` makes the Trainer save a checkpoint, at a due step and on all ranks.

    Raises:
        InputError: for invalid options, when the callback is constructed.
        MissingExtraError: if transformers is not installed, on import.
    """

    monitor: Monitor | None
    """None until training starts; closed when it has ended."""
    _restored: dict[str, Any]
    _stands_for: SpectralMonitor | None

    @shows_options
    def __init__(self, every: int | Schedule = 200, *, sinks: Sinks = "auto", **options: Unpack[WatchKeywords]) -> None:
        self._given = CallbackOptions(every=every, sinks=sinks, options=options)
        self._forget()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Create the monitor: model and optimizer exist, and the loggers have begun their runs."""
        if isinstance(state.stateful_callbacks.get(type(self).__name__), list):
            raise InputError("there are two SpectralMonitors on this Trainer: give it one")
        self._close()  # an attempt that was broken off has not ended
        self.monitor = self._given.watch(
            model,
            optimizer,
            first_step=state.global_step,
            hosts_own=partial(_reported, args, state) if state.is_world_process_zero else None,
        )
        if self._stands_for is not None:
            self._stands_for.monitor = self.monitor
        if state.global_step and self.monitor is not None:
            self._resume(self.monitor, args, state)
        # A checkpoint that was saved without this callback lacks it, and the Trainer's next save would fail.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count an optimizer step."""
        monitor = self.monitor
        if monitor is None:
            return
        due = monitor.step(state.global_step - monitor.steps, host_step=state.global_step)
        if due:
            stop, save = _agreed((monitor.should_stop, monitor.take_save_request()), args)
            control.should_training_stop |= stop
            control.should_save |= save

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the monitor's state in the checkpoint that the Trainer has just written."""
        if self.monitor is None or not self._id or not state.is_world_process_zero:
            return
        try:
            self._save(self.monitor, folders.checkpoints(args, state.global_step))
        except Exception as error:
            if self._given.is_strict:
                raise
            _log.warning(
                "esdmon: %s could not be saved at step %d: %s. A run that is resumed there does not know alerts and "
                "what was read before.",
                _FILE,
                state.global_step,
                describe(error),
            )

    def _save(self, monitor: Monitor, checkpoints: Iterable[Path]) -> None:
        """Write the state atomically into the folder whose Trainer state has our id."""
        for folder in checkpoints:
            file, new = folder / folders.STATE, folder / f"{_FILE}.new"
            if file.is_file() and self._id in file.read_text(encoding="utf-8"):
                try:
                    torch.save(monitor.state_dict() | {"id": self._id}, new)
                    new.replace(folder / _FILE)
                finally:
                    new.unlink(missing_ok=True)
                return

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the monitor."""
        self._close()

    def state(self) -> dict[str, Any]:
        """Return the arguments that JSON can hold, with a new id, for the Trainer's state file.

        The Trainer calls this when training begins, before it replaces this callback with one from a checkpoint, and
        when it saves.
        """
        global _asked_last  # noqa: PLW0603 -- the Trainer does not say in whose place it makes a callback
        _asked_last = weakref.ref(self)
        self._id = uuid.uuid4().hex
        # Not an address on the net: it may be a secret, and the file is passed on.
        is_secret = any(isinstance(sink, str) and "://" in sink for sink in self._given.sinks)
        arguments = self._given.options | {"sinks": [sink for sink in self._given.sinks if "://" not in str(sink)]}
        held = {name: value for name, value in arguments.items() if _is_json(value)}
        left_out = sorted(arguments.keys() - held.keys() | ({"sinks"} if is_secret else set()))
        return {"args": held, "attributes": {"restored": {"id": self._id, "left_out": left_out}}}

    @property
    def restored(self) -> dict[str, Any]:
        """Id and omitted options of the checkpoint from which the Trainer has created this callback."""
        return self._restored

    @restored.setter
    def restored(self, said: dict[str, Any]) -> None:
        self._restored = said
        left_out = set(said.get("left_out", ()))
        given = None if _asked_last is None else _asked_last()
        if given is None:
            if left_out:
                _log.warning(
                    "esdmon: the checkpoint does not hold the options %s: they have their defaults.",
                    ", ".join(sorted(left_out)),
                )
            return
        self._stands_for = given
        options = {name: value for name, value in self._given.options.items() if name not in left_out}
        lost = sorted(left_out - given._given.options.keys() - {"sinks"})  # noqa: SLF001 -- of the same class
        if lost:
            _log.warning(
                "esdmon: the checkpoint does not hold the options %s, and they are not given: defaults are used.",
                ", ".join(lost),
            )
        merged = given._given.options | options  # noqa: SLF001 -- of the same class
        sinks = given._given.sinks if "sinks" in left_out else self._given.sinks  # noqa: SLF001
        self._given = CallbackOptions(every=merged.pop("every"), sinks=sinks, options=merged)

    def _forget(self) -> None:
        self.monitor = None
        self._id = ""
        self._restored = {}
        self._stands_for = None

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()

    def _resume(self, monitor: Monitor, args: Any, state: Any) -> None:
        step = state.global_step
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        wanted = saved.get("attributes", {}).get("restored", {}).get("id")
        why = "is missing"
        for folder in (*folders.resumed(args), *folders.checkpoints(args, step)) if wanted else ():
            if not (folder / _FILE).is_file():
                continue
            try:
                found = dict(torch.load(folder / _FILE, weights_only=True))
            except Exception as error:  # noqa: BLE001 -- a file that was cut short raises anything
                why = f"cannot be read ({describe(error)})"
                continue
            if found.pop("id", None) == wanted:
                resume(monitor, found, steps=step, strict=self._given.is_strict)
                return
            why = "is that of another run"
        _log.warning(
            "esdmon: training is resumed at step %d, and the %s of its checkpoint %s. Monitoring continues "
            "without earlier alerts and readings.",
            step,
            _FILE,
            why,
        )


_asked_last: weakref.ref[SpectralMonitor] | None = None


def _agreed(found: tuple[bool, bool], args: Any) -> tuple[bool, bool]:
    """Broadcast the flags of rank 0 to all ranks."""
    if args.world_size == 1:
        return found
    from accelerate.utils import broadcast_object_list  # noqa: PLC0415 -- comes with the Trainer

    agreed: tuple[bool, bool] = broadcast_object_list([found])[0]
    return agreed


def attach(trainer: Any, **options: Any) -> SpectralMonitor:
    """Add a `SpectralMonitor` to an existing Trainer, also of TRL; options as in `SpectralMonitor`.

    Raises:
        InputError: if it already has one.
    """
    if any(isinstance(callback, SpectralMonitor) for callback in trainer.callback_handler.callbacks):
        raise InputError("there is a SpectralMonitor on this Trainer already: give it one")
    callback = SpectralMonitor(**options)
    trainer.add_callback(callback)
    return callback


def _reported(args: Any, state: Any) -> HostsOwn:
    """Return sinks for the loggers of `report_to`, or a JSONL file in the output folder if there are none."""
    names = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or ())
    sinks: list[tuple[str, Any]] = []
    if "tensorboard" in names:
        spec = f"tensorboard:{folders.tensorboard(args, state)}"
        sinks.append((spec, lambda: spec))
    if "wandb" in names:
        import wandb  # noqa: PLC0415 -- the Trainer has imported it

        if wandb.run is not None:
            sinks.append(("the Trainer's run of W&B", lambda: WandbSink(wandb.run)))
    others = sorted(set(names) - {"tensorboard", "wandb", "none"})
    if others:
        _log.warning("esdmon: readings are not written to %s; use sinks= for them.", ", ".join(others))
    if not sinks:
        own = own_jsonl(folders.of_trial(args, state), goes_on=state.global_step > 0)
        sinks.append((own, lambda: own))
    return sinks


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
