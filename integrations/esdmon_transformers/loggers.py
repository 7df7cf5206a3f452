"""Open sinks for the loggers that `report_to` of the Trainer names.

TensorBoard, Weights & Biases and the trackers of `esdmon_trackers` have their own sinks. Any other integration of the
Trainer gets the numbers by its `on_log`. `Trainer.log` is not used: it would add the numbers to the Trainer's
`log_history`, and its next row would be lost.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from esdmon.isolation import describe
from esdmon.sinks import ScalarLoggerSink
from esdmon.trainers.sinks import HostSinks
from esdmon_trackers import clearml, comet, mlflow, swanlab, trackio
from esdmon_transformers import folders
from esdmon_wandb import WandbSink

if TYPE_CHECKING:
    from esdmon.sinks import Sink

_log = logging.getLogger("esdmon")


def _active_wandb() -> Sink | None:
    import wandb  # noqa: PLC0415 -- the Trainer has imported it

    return None if wandb.run is None else WandbSink(wandb.run)


_ACTIVE: dict[str, Callable[[], Sink | None]] = {
    "clearml": clearml.active_sink,
    "comet_ml": comet.active_sink,
    "dagshub": mlflow.active_sink,
    "mlflow": mlflow.active_sink,
    "swanlab": swanlab.active_sink,
    "trackio": partial(trackio.active_sink, beside_rows="train/global_step"),
    "wandb": _active_wandb,
}


def host_sinks(args: Any, state: Any, *, resumed: str | None) -> HostSinks:
    """Return the loggers of a Trainer that `report_to` names, and its output folder.

    Args:
        args: the Trainer's arguments.
        state: the Trainer's state.
        resumed: as in `HostSinks`.
    """
    return HostSinks(
        loggers=partial(_reported, args, state),
        folder=partial(folders.of_trial, args, state),
        resumed=resumed,
    )


def _reported(args: Any, state: Any) -> list[tuple[str, Callable[[], str | Sink]]]:
    """Return a sink for each name that supports readings; log the other names."""
    names = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or ())
    found = {name: _sink_for(name, args, state) for name in sorted(set(names) - {"none"})}
    others = [name for name, sink in found.items() if sink is None]
    if others:
        _log.warning(
            "esdmon: report_to= names %s, which has no active run or takes no numbers. No readings are written there; "
            "give a sink in sinks=.",
            ", ".join(others),
        )
    return [sink for sink in found.values() if sink is not None]


def _sink_for(name: str, args: Any, state: Any) -> tuple[str, Callable[[], str | Sink]] | None:
    """Return the name in messages, and the function that returns the sink, for a name of `report_to`."""
    if name == "tensorboard":
        spec = f"tensorboard:{folders.tensorboard(args, state)}"
        return spec, lambda: spec
    sink = _of_active_run(name)
    if sink is not None:
        return f"the Trainer's run of {name}", lambda: sink
    callback = _integration(name)
    if callback is not None:
        return f"the Trainer's {type(callback).__name__}", partial(_through, callback, args, state)
    return None


def _of_active_run(name: str) -> Sink | None:
    """Return a sink for the active run of a tracker; None without a run, or if the tracker's interface has changed."""
    try:
        return _ACTIVE[name]() if name in _ACTIVE else None
    except Exception as error:  # noqa: BLE001 -- parts of a tracker that are not documented
        _log.warning("esdmon: the run of %s cannot be opened: %s. It gets numbers only.", name, describe(error))
        return None


def _through(callback: Any, args: Any, state: Any) -> ScalarLoggerSink:
    """Return a sink that passes the numbers to an integration in the same way as the Trainer."""
    from transformers import TrainerControl  # noqa: PLC0415 -- half typed

    def log(numbers: dict[str, float], step: int) -> None:
        live = getattr(callback, "live", None)
        if live is not None:  # DVCLive: its `on_log` would count a step of the Trainer
            for name, value in numbers.items():
                live.log_metric(name, value)
            return
        then = copy.copy(state)
        then.global_step = step
        callback.on_log(args, then, TrainerControl(), logs=numbers)

    return ScalarLoggerSink(log, place=callback)


def _integration(name: str) -> Any:
    """Return the callback of the Trainer for a name of `report_to`, if it accepts numbers; else None."""
    from transformers import TrainerCallback  # noqa: PLC0415 -- half typed
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # noqa: PLC0415

    kind = INTEGRATION_TO_CALLBACK.get(name)
    found: Iterator[Any] = (each for each in folders.callbacks() if kind is not None and type(each) is kind)
    callback = next(found, None)
    return None if callback is None or type(callback).on_log is TrainerCallback.on_log else callback
