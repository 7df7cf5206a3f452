"""Find the folders that the Trainer of Hugging Face reads and writes, and the model that it trains.

Callbacks do not get these as arguments: `args` has neither the resumed checkpoint nor the folder of a trial. So they
are read from local variables of the Trainer's functions on the stack, or else guessed from its defaults.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from esdmon.errors import expand_home

STATE = "trainer_state.json"
"""Name of the Trainer's own file in a checkpoint."""


def checkpoints(args: Any, step: int) -> Iterator[Path]:
    """Yield the possible folders of the checkpoint of a step: the Trainer's, and those of its trials."""
    root, name = Path(args.output_dir), f"checkpoint-{step}"
    yield root / name
    yield from sorted(root.glob(f"*/{name}"))


def resumed(args: Any) -> Iterator[Path]:
    """Yield the folder of the resumed checkpoint, from the argument of `train()` and from `args`."""
    given = next((value for value in _above("resume_from_checkpoint") if isinstance(value, str)), None)
    for folder in (given, args.resume_from_checkpoint):
        if isinstance(folder, str):
            yield Path(folder)


def of_trial(args: Any, state: Any) -> Path:
    """Return the folder of the checkpoints: in `hyperparameter_search` one for each trial."""
    return Path(args.output_dir) / (state.trial_name or _unnamed_trial(state) or "")


def tensorboard(args: Any, state: Any) -> Path:
    """Return a folder of our own inside the one that the Trainer's TensorBoard callback writes to.

    All trials without a name share one folder of the Trainer; each gets a folder of our own in it.
    """
    trial = None if state.trial_name else _unnamed_trial(state)
    return _of_trainer(args, state) / (f"esdmon-{trial}" if trial else "esdmon")


def _of_trainer(args: Any, state: Any) -> Path:
    """Return the folder that the Trainer's TensorBoard callback writes to."""
    for callback in callbacks():
        writer = getattr(callback, "tb_writer", None)
        folder = getattr(writer, "log_dir", None) or getattr(writer, "logdir", None)
        if state.is_hyper_param_search and state.trial_name:
            # After a trial the Trainer opens its writer again, which then still writes to the folder of that trial.
            folder = getattr(callback, "logging_dir", None) or folder
        if isinstance(folder, str | os.PathLike) and hasattr(callback, "tb_writer"):
            return Path(folder)
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if given:
        return expand_home(given)
    runs = Path(args.output_dir) / "runs"
    found = {path.parent for path in runs.rglob("events.out.tfevents.*")}
    theirs = [folder for folder in found if not folder.name.startswith("esdmon")]
    return max(theirs, key=lambda folder: folder.stat().st_mtime, default=runs)


def callbacks() -> Iterator[Any]:
    """Yield the callbacks of the Trainer that is calling one of them."""
    for handler in _above("self"):
        yield from getattr(handler, "callbacks", None) or ()


def trained_model(given: Any) -> Any:
    """Return the module that the Trainer trains, also if callbacks get a model that is not a module, as in SetFit."""
    if isinstance(given, nn.Module):
        return given
    own: Iterator[Any] = (getattr(each, "model", None) for each in _above("self"))
    return next((model for model in own if isinstance(model, nn.Module)), given)


def _unnamed_trial(state: Any) -> str | None:
    """Return the Trainer's name for a trial of Optuna without a name; None outside of one."""
    number = getattr(next(_above("trial"), None), "number", None) if state.is_hyper_param_search else None
    return None if number is None else f"run-{number}"


def _above(name: str) -> Iterator[Any]:
    """Yield the values of a local variable in the calling functions of transformers, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        if name in frame.f_code.co_varnames and str(frame.f_globals.get("__name__", "")).startswith("transformers."):
            yield frame.f_locals.get(name)
        frame = frame.f_back
