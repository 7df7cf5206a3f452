"""Resolve `mode=` and `workers=` of `watch()` for this machine, model and job."""

import logging
from collections.abc import Callable

import torch

from esdmon.options.watch_options import WatchOptions
from esdmon.runtime.workers.cpus import IdleCores, cores
from esdmon.runtime.workers.executor import MODES, Mode
from esdmon.runtime.workers.worker import why_not
from esdmon.schedule.workers import Workers

_log = logging.getLogger("esdmon")


def available_mode(mode: str) -> str:
    """Return the requested mode, or "thread" where worker processes are not available."""
    why = why_not() if mode == "process" else ""
    if why:
        _log.warning("esdmon: mode='process' needs worker processes, but %s. Threads read in their place.", why)
    return "thread" if why else mode


def resolved_mode(mode: str, *, on_accelerator: bool, on_device: bool, job: int) -> Mode:
    """Return the mode that "auto" stands for here; another unchanged, or "thread" where it is not available.

    Args:
        mode: that was asked for.
        on_accelerator: whether any weight is.
        on_device: whether a GPU can compute the eigenvalues of any.
        job: ranks of the job.
    """
    if mode == "device" and not (on_device and job == 1):
        _log.warning(
            "esdmon: mode='device' needs a process that trains alone, and on its CUDA device a whole parameter with "
            "some 700 eigenvalues or more. A thread reads in its place."
        )
        return "thread"
    for one in MODES:
        if mode == one:
            return one
    # torch starts a thread for each physical core, which are half of what the system counts where each runs two.
    idle = 4 * torch.get_num_threads() <= cores(job=job)
    return "thread" if on_accelerator or idle else "sync"


def workers_for(options: WatchOptions, *, job: int, clock: Callable[[], float]) -> Workers | None:
    """Return what sets the number of threads on idle cores; None where none is wanted, or nothing limits the time.

    Args:
        options: of the user.
        job: ranks of the job.
        clock: seconds, without those that the monitor takes in the hook.
    """
    if options.budget is None or options.workers == 0:
        return None
    idle, at_most = IdleCores(job=job), cores(job=job) if options.workers == "auto" else int(options.workers)
    return Workers(
        options.budget,
        lambda own: min(at_most, idle(own=own)),
        with_ranks=job > 1,
        is_known=idle.is_known,
        clock=clock,
    )
