"""Define the callback for the Trainer of Hugging Face."""

from __future__ import annotations

import logging
import uuid
import weakref
from typing import Any

from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError, MissingExtraError
from esdmon.isolation import describe
from esdmon.options import shows_options
from esdmon.trainers.base import MonitorCallback, refuse_second, run_of
from esdmon_transformers import folders, state_file
from esdmon_transformers.loggers import host_sinks

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingExtraError("esdmon_transformers", "transformers", "transformers") from error

_log = logging.getLogger("esdmon")


@explain_wrong_calls
class SpectralMonitor(MonitorCallback, TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers is half typed
    """Monitors the spectra of a model while a Trainer trains it.

    Readings go to the trackers in `report_to`, at the Trainer's `global_step`. For Weights & Biases this is the run of
    the Trainer. For TensorBoard it is a separate folder beside the Trainer's, because the Trainer's writer cannot be
    accessed, and two writers in one folder lose data. If `report_to` names neither, readings go to
    `esdmon-1/esdmon.jsonl` in `output_dir`, with a new number for each run.

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

    Each checkpoint of the Trainer contains the monitor's state in a file `esdmon.pt`, with an id that is also in the
    Trainer's own state. Each `train()` is a separate run, also an attempt of `auto_find_batch_size` and a trial of a
    search. With `restore_callback_states_from_checkpoint` the options come from the checkpoint. Options that JSON
    cannot hold, such as functions and sinks of your own, come from the callback that was passed to the Trainer.

    Args:
        every: steps between readings, or a function of the step that returns whether to read at it.
        sinks: "auto" writes to the trackers in `report_to`. A name such as "jsonl:PATH", a sink of your own, or a list
            of them replaces these; a list may contain "auto" too. None writes nothing.
        options: the other options of `esdmon.watch`. `budget` limits the share of the run's time, `mode` sets whether a
            thread reads, `layers` and `exclude` select matrices, and `alerts` selects rules. An alert of a rule in
            `stop_on` ends the training on all ranks; one in `save_on` has the Trainer save a checkpoint, at a due step.

    Raises:
        InputError: for an unknown option or a value that cannot be used, when the callback is constructed.
        MissingExtraError: if transformers is not installed, when this package is imported.
    """

    _id: str
    """Id in the Trainer's state of a checkpoint, which identifies the monitor's state that belongs to it."""
    _restored: dict[str, Any]
    _replaced: SpectralMonitor | None
    """The callback that this one, created from a checkpoint, has replaced in the Trainer."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Begin to watch. At this time the model is on its device, the optimizer exists, and the loggers have begun."""
        if isinstance(state.stateful_callbacks.get(type(self).__name__), list):
            refuse_second()
        self._close(is_complete=False)  # an aborted attempt has not called `on_train_end`
        is_resumed = state.global_step > 0
        saved, why = self._saved(args, state) if is_resumed else (None, "")
        resumed = run_of(saved) if is_resumed else None
        self._begin(
            folders.trained_model(model),
            optimizer,
            steps=state.global_step,
            writes=host_sinks(args, state, resumed=resumed) if state.is_world_process_zero else None,
        )
        if self._replaced is not None:
            self._replaced.monitor = self.monitor
        if saved is not None:
            self._resume(saved, steps=state.global_step)
        elif is_resumed and self.monitor is not None:
            _log.warning(
                "esdmon: training is resumed at step %d, and the %s of its checkpoint %s. Readings continue; alerts "
                "and earlier readings are not restored.",
                state.global_step,
                state_file.FILE,
                why,
            )
        # A checkpoint that was saved without this callback lacks it, and the Trainer's next save would fail.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step that the optimizer has taken."""
        steps = self._new_steps(state.global_step)
        if self.monitor is not None and self.monitor.step(steps, host_step=state.global_step):
            stop, save = _of_rank_0(self._requests(), args)
            control.should_training_stop |= stop
            control.should_save |= save

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the state next to the Trainer's state, which has just been written with our id."""
        if self.monitor is None or not self._id or not state.is_world_process_zero:
            return
        try:
            checkpoints = folders.checkpoints(args, state.global_step)
            state_file.save(self.monitor.state_dict(), checkpoints, identity=self._id)
        except Exception as error:
            if self._strict:
                raise
            _log.warning(
                "esdmon: %s could not be saved at step %d: %s. A run that is resumed there has no earlier alerts or "
                "readings.",
                state_file.FILE,
                state.global_step,
                describe(error),
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the monitor and its sinks. A trial that is pruned ends here too, before its last step."""
        self._close(is_complete=control.should_training_stop or state.global_step >= state.max_steps)

    def state(self) -> dict[str, Any]:
        """Return the data that the Trainer saves as JSON: the arguments of the callback, as far as JSON can hold them.

        The Trainer calls it when training begins, before it replaces this callback by one from a checkpoint, and when
        it saves. Each call returns a new id.
        """
        global _last_saved  # noqa: PLW0603 -- the Trainer does not say which callback it replaces
        _last_saved = weakref.ref(self)
        self._id = uuid.uuid4().hex
        arguments, left_out = self._options.json_arguments()
        return {"args": arguments, "attributes": {"restored": {"id": self._id, "left_out": left_out}}}

    @property
    def restored(self) -> dict[str, Any]:
        """Return the data in the checkpoint besides the arguments; empty if the Trainer has not restored this callback.

        The Trainer sets it. Options that JSON cannot hold are then taken from the callback that is replaced.
        """
        return self._restored

    @restored.setter
    def restored(self, saved: dict[str, Any]) -> None:
        self._restored = saved
        left_out = set(saved.get("left_out", ()))
        self._replaced = None if _last_saved is None else _last_saved()
        given = () if self._replaced is None else (*self._replaced.options, "sinks")
        lost = sorted(left_out.difference(given))
        if lost:
            _log.warning(
                "esdmon: the checkpoint does not contain the options %s, and no callback of this Trainer sets them: "
                "defaults are used. Give them to SpectralMonitor().",
                ", ".join(lost),
            )
        if self._replaced is not None:
            self._options = self._replaced._options.updated(self._options, keep=left_out)  # noqa: SLF001 -- of this class

    def _reset(self) -> None:
        super()._reset()
        self._id = ""
        self._restored = {}
        self._replaced = None

    def _saved(self, args: Any, state: Any) -> tuple[dict[str, Any] | None, str]:
        """Return the state in the checkpoint that is resumed, and the reason if there is none."""
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        identity = saved.get("attributes", {}).get("restored", {}).get("id") or ""
        checkpoints = (*folders.resumed(args), *folders.checkpoints(args, state.global_step))
        return state_file.load(checkpoints, identity=identity)


_last_saved: weakref.ref[SpectralMonitor] | None = None


def _of_rank_0(requests: tuple[bool, bool], args: Any) -> tuple[bool, bool]:
    """Return the requests of rank 0; called on all ranks."""
    if args.world_size == 1:
        return requests
    from accelerate.utils import broadcast_object_list  # noqa: PLC0415 -- comes with the Trainer

    agreed: tuple[bool, bool] = broadcast_object_list([requests])[0]
    return agreed


@explain_wrong_calls
@shows_options
def attach(trainer: Any, **options: Any) -> SpectralMonitor:
    """Add a `SpectralMonitor` to an existing Trainer, such as one of TRL or SetFit, and return the callback.

    Args:
        trainer: the Trainer, before `train()`.
        options: the arguments of `SpectralMonitor`.

    Raises:
        InputError: if the Trainer already has a `SpectralMonitor`, if it takes no callbacks of Hugging Face, or for
            options that cannot be used.
    """
    handler = getattr(trainer, "callback_handler", None)
    if not hasattr(trainer, "add_callback"):
        raise InputError(
            f"attach() is for a Trainer of Hugging Face; {type(trainer).__name__} has no add_callback(). "
            "Of Lightning, construct the Trainer with callbacks=[esdmon_lightning.SpectralMonitor()]; in a loop of "
            "your own, call esdmon.watch(model, optimizer)"
        )
    # A Trainer that wraps another has no own list; then a second callback is rejected when training begins.
    if any(isinstance(callback, SpectralMonitor) for callback in getattr(handler, "callbacks", ())):
        raise InputError(
            "there is a SpectralMonitor on this Trainer already, and a second would write the same series: use that one"
        )
    callback = SpectralMonitor(**options)
    trainer.add_callback(callback)
    return callback
