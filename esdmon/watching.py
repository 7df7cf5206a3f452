"""`watch`: one line that puts a monitor on a model.

Named so, and not `watch`, because a submodule would take the place of the function `esdmon.watch`.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from esdmon.alerts import AlertManager
from esdmon.errors import InputError, nearest
from esdmon.isolation import Faults
from esdmon.options.checks import SIMPLE, check_mode, check_simple
from esdmon.options.resolve import Alerts, Sinks, actions_for, askable, check_on_alert, check_sinks, open_sinks, settle
from esdmon.plugins import Plugins
from esdmon.records import Alert
from esdmon.runtime.clock import Clock, hookable
from esdmon.runtime.coordination import Coordinator
from esdmon.runtime.cpus import cores
from esdmon.runtime.executor import Executor, Mode
from esdmon.runtime.monitor import Monitor
from esdmon.runtime.pipeline import ReadingPipeline
from esdmon.runtime.reader import Reader, choose_measures
from esdmon.runtime.remote_reader import RemoteReader
from esdmon.schedule import Schedule, as_schedule, union
from esdmon.schedule.budget import Budget
from esdmon.weights import MIN_EIGENVALUES, Drift, Model, Selection, check_precision
from esdmon.weights.names import unwrap

_log = logging.getLogger("esdmon")
_made = itertools.count()  # monitors of a distributed job
_watching: weakref.WeakKeyDictionary[Optimizer, list[tuple[weakref.ref[Monitor], int]]] = weakref.WeakKeyDictionary()
"""The monitors whose clock an optimizer is, each with the model it watches."""
_NO_STEP = (
    "step() of the {} that watch() was given was not called. If another optimizer trains, give watch() that one, or "
    "none, and call monitor.step()"
)


def watch(
    model: Model,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    every: int | Schedule = 200,
    budget: float | None = 0.01,
    mode: str = "auto",
    sinks: Sinks = "auto",
    alerts: Alerts = "default",
    on_alert: Callable[[Alert], object] | None = None,
    stop_on: str | Sequence[str] = (),
    save_on: str | Sequence[str] = (),
    layers: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
    max_eigenvalues: int | None = None,
    reference: Model | str | os.PathLike[str] | None = None,
    measures: str | Sequence[str] = "default",
    precision: str = "auto",
    max_tags: int | None = 200,
    strict: bool = False,
    plugins: Iterable[object] = (),
    hook: bool = True,
    first_step: int = 0,
) -> Monitor:
    """Watch a model's spectra while it trains.

    The weights are read after the optimizer's step, and nothing else of the run is touched: losses and random numbers
    are the same to the last bit. `every` says when something is read, and `budget` how much of the model.

    Args:
        model: what trains; call after it is on its device.
        optimizer: its steps are counted; of several, those of the first. None: call `monitor.step()` after each step
            yourself.
        every: steps between readings, or a function of the step that says when to read.
        budget: the share of the run's time, and of its CPU time, that watching may take. At each due step those
            matrices are read that are most out of date for what they cost, and at least one. None: all, each time.
        mode: "sync" reads in the optimizer's hook; "thread" copies the weights there, and reads while training goes on;
            "auto" is "thread" where the weights are on an accelerator or three of four cores are idle, else "sync".
        sinks: where readings go: "tensorboard:DIR", "jsonl:PATH", "console", a sink of your own, or several of them.
            "auto": the run of Weights & Biases that is active, or else TensorBoard in a new folder under `runs/`, where
            it is installed; and JSONL in that folder.
            None: nowhere.
        alerts: "default" for all rules, None for none, names of rules and rules of your own, or the path of a TOML file
            (`esdmon.alerts.config`) that sets thresholds and actions.
        on_alert: called with each `Alert` that begins, grows or ends.
        stop_on: names of rules: one that fires sets `monitor.should_stop`, and ends the training of a host.
        save_on: names of rules: one that fires asks for a checkpoint, which a host saves; a loop of your own asks
            `monitor.take_save_request()`.
        layers: fnmatch patterns on the names of matrices; None for all but embeddings, output heads and routers.
        exclude: patterns of those to leave out.
        min_eigenvalues: matrices with fewer, over all slices, are left out.
        max_eigenvalues: matrices with more are left out: what costs the most.
        reference: the state that training starts from, as a model, a mapping or the path of a checkpoint: W − W₀ is
            read instead of W. A `state_dict()` of the model itself is copied.
        measures: "default", "all" (with those that need eigenvectors or a shuffled copy), or names of measures.
        precision: "auto" (float32 where no verdict depends on it) or "exact" (float64).
        max_tags: series of layers that TensorBoard, W&B and loggers are given at most, see `esdmon.present.scalars`;
            None for all. The JSONL always has all.
        strict: raise what fails while watching, instead of logging it and going on. For tests.
        plugins: modules or objects with hooks, besides those that are installed.
        hook: False for a host that counts steps itself, and calls `monitor.step()`: the optimizer is only asked for
            what it holds.
        first_step: steps that were taken before, in a run that is resumed without a state of the monitor.

    Returns:
        A `Monitor`, which is a context manager: leaving the block closes it.

    Raises:
        InputError: a ValueError, for anything above that cannot be used: before training, never during it.

    >>> import torch
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch(model, optimizer, every=2, sinks=[]) as monitor:
    ...     for _ in range(4):
    ...         model(torch.ones(1, 64)).sum().backward()
    ...         optimizer.step()
    >>> monitor.report.step
    4
    """
    check_simple(max_tags=max_tags, strict=strict, hook=hook, first_step=first_step)
    check_on_alert(on_alert)
    schedule = as_schedule(every)
    faults = Faults(strict=strict)
    known = Plugins(plugins)
    if known.schedule is not None:
        schedule = union(schedule, known.schedule)
    inner = _optimizers(optimizer)
    drift = Drift()
    reader = Reader(
        model,
        known,
        selection=Selection(layers, exclude, min_eigenvalues, max_eigenvalues),
        reference=reference,
        measures=measures,
        precision=precision,
        optimizers=inner,
        faults=faults,
        drift=drift,
    )
    chosen = _mode(check_mode(mode), on_accelerator=reader.on_accelerator)
    # Beside a thread that reads, a block of this one is charged what it uses itself; the thread is charged apart.
    spending = Budget(budget, cpu_clock=time.process_time if chosen == "sync" else time.thread_time)
    worker = Executor(reader, spending, mode=chosen)
    settings = settle(alerts, stop_on, save_on, known)
    rules = askable(settings, reader.measures)
    actions = actions_for(settings, on_alert, known)
    check_sinks(sinks, known)
    hooked = inner[0] if inner and hook else None
    if hooked is not None:
        _close_older(hooked, model)
    replicas = _replicas()
    leads = replicas is None or replicas.rank == 0
    monitor = Monitor(
        RemoteReader(reader, worker, replicas)
        if replicas and not leads
        else ReadingPipeline(reader, worker, spending, replicas=replicas, max_tags=max_tags),
        schedule=schedule,
        sinks=open_sinks(sinks, settings, known) if leads else (),
        book=AlertManager(rules if leads else (), faults=faults, who=partial(known.who, "rule")),
        actions=actions,
        budget=spending,
        faults=faults,
        parts={"reader": reader},
        first_step=first_step,
        **({} if hooked is None else {"no_step": _NO_STEP.format(type(hooked).__name__)}),
    )
    if hooked is not None:
        monitor.at_close(Clock(hooked, monitor.hooked_step, faults).close)
        _watching.setdefault(hooked, []).append((weakref.ref(monitor), _identity(model)))
    if not reader.any_in_optimizer:
        _log.warning("esdmon: the optimizer holds none of the weights that are watched: is it this model's?")
    _log.info("esdmon: %s", reader.coverage)
    return monitor


def check_options(
    *,
    every: int | Schedule = 200,
    budget: float | None = 0.01,
    mode: str = "auto",
    sinks: Sinks = "auto",
    alerts: Alerts = "default",
    on_alert: Callable[[Alert], object] | None = None,
    stop_on: str | Sequence[str] = (),
    save_on: str | Sequence[str] = (),
    measures: str | Sequence[str] = "default",
    precision: str = "auto",
    plugins: Iterable[object] = (),
    **others: object,
) -> None:
    """Check what can be without a model: for hosts, whose callback is made long before the model is ready.

    Raises:
        InputError: as `watch` does, for any option that cannot be used, or that is none.
    """
    known = Plugins(plugins)
    check_simple(**{name: value for name, value in others.items() if name in SIMPLE})
    as_schedule(every)
    Budget(budget)
    check_mode(mode)
    check_precision(precision)
    choose_measures(measures, known.measures)
    settle(alerts, stop_on, save_on, known)
    check_on_alert(on_alert)
    check_sinks(sinks, known)
    options = inspect.signature(watch).parameters
    for name in others:
        if name not in options or name in ("model", "optimizer", "hook", "first_step"):
            msg = f"{name}= is no option of watch().{nearest(name, options)}"
            raise InputError(msg)


def _close_older(optimizer: Optimizer, model: Model) -> None:
    """Close a monitor of the same optimizer and model: a notebook cell that ran again."""
    for reference, watched in _watching.pop(optimizer, ()):
        older = reference()
        if older is not None and not older.closed:
            if watched == _identity(model):
                _log.warning(
                    "esdmon: this model and optimizer were watched already; that monitor is closed at step %d. To "
                    "watch one model twice, leave the optimizer out of the second watch() and call its step().",
                    older.steps,
                )
                older.close()
            else:
                _watching.setdefault(optimizer, []).append((reference, watched))


def _identity(model: Model) -> int:
    return id(unwrap(model)) if isinstance(model, torch.nn.Module) else id(model)


def _mode(mode: Mode | Literal["auto"], *, on_accelerator: bool) -> Mode:
    if mode != "auto":
        return mode
    # torch starts a thread for each physical core, which are half of what the system counts where each runs two.
    idle = 4 * torch.get_num_threads() <= cores()
    return "thread" if on_accelerator or idle else "sync"


def _replicas() -> Coordinator | None:
    """The ranks of this job; None for a process that is alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    # Monitors are made in the same order on all ranks, so those that belong together have words of their own.
    c10d = distributed.distributed_c10d
    store = c10d.PrefixStore(f"esdmon/{next(_made)}", c10d._get_default_store())  # noqa: SLF001 -- there is no public way to it
    return Coordinator(store, distributed.get_rank(), distributed.get_world_size())


def _optimizers(given: Any) -> tuple[Optimizer, ...]:
    """Return the torch optimizers inside what was given: one, or a list of several."""
    if given is None:
        return ()
    found = tuple(map(hookable, given if isinstance(given, list | tuple) else (given,)))
    if not found:
        raise InputError("optimizer is an empty list: give one, or leave it out and call monitor.step()")
    return found
