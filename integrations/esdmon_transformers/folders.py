"""Where the Trainer of Hugging Face reads and writes.

Its events do not say: `args` has neither the checkpoint that is resumed nor the folder of a trial. So these are taken
from the Trainer's own calls, further up the stack, by the names that it has there, and else from its usual places.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATE = "trainer_state.json"
"""The Trainer's file in a checkpoint."""


def checkpoints(args: Any, step: int) -> Iterator[Path]:
    """Yield the folders that a checkpoint of that step may be in: the Trainer's, and those of its trials."""
    root, name = Path(args.output_dir), f"checkpoint-{step}"
    yield root / name
    yield from sorted(root.glob(f"*/{name}"))


def resumed(args: Any) -> Iterator[Path]:
    """Yield the folder of the checkpoint that is resumed, as far as anybody says."""
    given = next((value for value in _above("resume_from_checkpoint") if isinstance(value, str)), None)
    for folder in (given, args.resume_from_checkpoint):
        if isinstance(folder, str):
            yield Path(folder)


def of_trial(args: Any, state: Any) -> Path:
    """Return the folder that checkpoints go to: in `hyperparameter_search` one for each trial."""
    return Path(args.output_dir) / (state.trial_name or _unnamed_trial(state) or "")


def tensorboard(args: Any, state: Any) -> Path:
    """Return a folder of our own in the one that the Trainer's TensorBoard callback writes to.

    Trials without a name have one folder of the Trainer's for all of them, and each one of ours.
    """
    trial = None if state.trial_name else _unnamed_trial(state)
    return _trainers(args, state) / (f"esdmon-{trial}" if trial else "esdmon")


def _trainers(args: Any, state: Any) -> Path:
    callbacks = [each for handler in _above("self") for each in getattr(handler, "callbacks", None) or ()]
    for callback in callbacks:
        writer = getattr(callback, "tb_writer", None)
        folder = getattr(writer, "log_dir", None) or getattr(writer, "logdir", None)
        if state.is_hyper_param_search and state.trial_name:
            # After a trial the Trainer opens its writer once more, which then still writes for the trial before.
            folder = getattr(callback, "logging_dir", None) or folder
        if isinstance(folder, str | os.PathLike) and hasattr(callback, "tb_writer"):
            return Path(folder)
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if given:
        return Path(given).expanduser()
    runs = Path(args.output_dir) / "runs"
    found = {path.parent for path in runs.rglob("events.out.tfevents.*")}
    theirs = [folder for folder in found if not folder.name.startswith("esdmon")]
    return max(theirs, key=lambda folder: folder.stat().st_mtime, default=runs)


def _unnamed_trial(state: Any) -> str | None:
    """Return what the Trainer calls a trial of Optuna that was given no name."""
    number = getattr(next(_above("trial"), None), "number", None) if state.is_hyper_param_search else None
    return None if number is None else f"run-{number}"


def _above(name: str) -> Iterator[Any]:
    """Yield what a name stands for in the functions of transformers that have called, the nearest first."""
    frame = inspect.currentframe()
    while frame is not None:
        if name in frame.f_code.co_varnames and str(frame.f_globals.get("__name__", "")).startswith("transformers."):
            yield frame.f_locals.get(name)
        frame = frame.f_back
