"""Sinks for what `report_to` of the Trainer names."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from esdmon.trainers.sinks import HostSinks
from esdmon_transformers import folders
from esdmon_wandb import WandbSink

_log = logging.getLogger("esdmon")


def host_sinks(args: Any, state: Any) -> HostSinks:
    """Return where a Trainer writes: to what `report_to` names, and else into its output folder."""
    return HostSinks(
        loggers=partial(_reported, args, state),
        folder=partial(folders.of_trial, args, state),
        resumed=state.global_step > 0,
    )


def _reported(args: Any, state: Any) -> list[tuple[str, Any]]:
    """Return a sink for each name that esdmon knows; log the others."""
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
        _log.warning(
            "esdmon: report_to= names %s, for which esdmon has no sink. No readings are written there; give a sink in "
            "sinks=.",
            ", ".join(others),
        )
    return sinks
