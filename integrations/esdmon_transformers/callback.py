"""esdmon as a callback of the Trainer of Hugging Face."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from esdmon.errors import InputError, MissingExtraError
from esdmon.hosts import HostOptions
from esdmon_wandb import WandbSink

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingExtraError("esdmon_transformers", "transformers", "transformers") from error

if TYPE_CHECKING:
    from esdmon import Monitor
    from esdmon.sinks import Sink

_log = logging.getLogger("esdmon")
_FILE = "esdmon.pt"


class SpectralMonitor(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers is half typed
    """Watches the spectra of the model while a Trainer trains it.

    Steps are the Trainer's `global_step`. Readings go where `report_to` says: to TensorBoard in a folder of our own
    beside the Trainer's, since its writer is not to be had and two writers in one folder lose data; to the run of
    Weights & Biases that the Trainer has begun, in the rows of the Trainer. Each checkpoint of the Trainer holds the
    monitor's state in a file `esdmon.pt`.

    Args:
        every: steps between readings, or a function of the step.
        sinks: "auto": what `report_to` says. Others as in `esdmon.watch`.
        options: as in `esdmon.watch`: budget, mode, alerts, layers, … An alert of `stop_on=` ends the training, one of
            `save_on=` has the Trainer save a checkpoint, at a due step and on all ranks.

    Raises:
        InputError: for options that cannot be used, when it is made.
        MissingExtraError: without transformers, when it is imported.
    """

    def __init__(self, every: Any = 200, *, sinks: Any = "auto", **options: Any) -> None:
        self._given = HostOptions(every=every, sinks=sinks, options=options)
        self.monitor: Monitor | None = None
        """None until training starts; closed when it has ended."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Begin: the model is in its place, the optimizer is made, the loggers have begun their runs."""
        if isinstance(state.stateful_callbacks.get(type(self).__name__), list):
            raise InputError("there are two SpectralMonitors on this Trainer: give it one")
        self.monitor = self._given.watch(
            model,
            optimizer,
            first_step=state.global_step,
            hosts_own=(lambda: _reported(args)) if state.is_world_process_zero else None,
        )
        if state.global_step:
            self._resume(self.monitor, args, state.global_step)
        # A checkpoint that was saved without this callback lacks it, and the Trainer's next save would fail.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step that the optimizer has taken."""
        monitor = self.monitor
        if monitor is None:
            return
        due = monitor.step(state.global_step - monitor.steps, host_step=state.global_step)
        if due:
            stop, save = _agreed((monitor.should_stop, monitor.take_save_request()), args)
            control.should_training_stop |= stop
            control.should_save |= save

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the state beside the Trainer's."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.monitor is not None and state.is_world_process_zero and folder.is_dir():
            torch.save(self.monitor.state_dict(), folder / _FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close what was opened."""
        if self.monitor is not None:
            self.monitor.close()

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps in its JSON: the arguments that JSON can hold, by which it makes a callback anew."""
        # Not an address on the net: it may be a secret, and the file is passed on.
        sinks = [sink for sink in self._given.sinks if not (isinstance(sink, str) and "://" in sink)]
        arguments = self._given.options | {"sinks": sinks}
        return {"args": {name: value for name, value in arguments.items() if _is_json(value)}, "attributes": {}}

    def _resume(self, monitor: Monitor, args: Any, step: int) -> None:
        given = args.resume_from_checkpoint if isinstance(args.resume_from_checkpoint, str) else ""
        for folder in (Path(given), Path(args.output_dir) / f"checkpoint-{step}"):
            path = folder / _FILE
            if path.is_file():
                monitor.load_state_dict(torch.load(path, weights_only=True) | {"steps": step})
                return
        _log.warning(
            "esdmon: training is resumed at step %d, and there is no %s in its checkpoint: the series goes on, alerts "
            "and what was read before are not known.",
            step,
            _FILE,
        )


def _agreed(found: tuple[bool, bool], args: Any) -> tuple[bool, bool]:
    """What rank 0 has found, on all ranks."""
    if args.world_size == 1:
        return found
    from accelerate.utils import broadcast_object_list  # noqa: PLC0415 -- comes with the Trainer

    agreed: tuple[bool, bool] = broadcast_object_list([found])[0]
    return agreed


def attach(trainer: Any, **options: Any) -> SpectralMonitor:
    """Add a `SpectralMonitor` to a Trainer that is made already, TRL's among them.

    Raises:
        InputError: where it has one.
    """
    if any(isinstance(callback, SpectralMonitor) for callback in trainer.callback_handler.callbacks):
        raise InputError("there is a SpectralMonitor on this Trainer already: give it one")
    callback = SpectralMonitor(**options)
    trainer.add_callback(callback)
    return callback


def _reported(args: Any) -> list[str | Sink]:
    """Sinks for what `report_to` names."""
    names = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or ())
    sinks: list[str | Sink] = []
    if "tensorboard" in names:
        sinks.append(f"tensorboard:{_trainers_folder(args) / 'esdmon'}")
    if "wandb" in names:
        import wandb  # noqa: PLC0415 -- the Trainer has imported it

        if wandb.run is not None:
            sinks.append(WandbSink(wandb.run))
    others = sorted(set(names) - {"tensorboard", "wandb", "none"})
    if others:
        _log.warning("esdmon: readings do not go to %s; give sinks= for them.", ", ".join(others))
    return sinks


def _trainers_folder(args: Any) -> Path:
    """Where the Trainer's TensorBoard callback has just begun to write: nobody tells, so the newest is taken."""
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if given:
        return Path(given).expanduser()
    runs = Path(args.output_dir) / "runs"
    folders = {path.parent for path in runs.glob("*/events.out.tfevents.*")}
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=runs)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
