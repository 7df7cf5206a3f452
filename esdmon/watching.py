"""`watch`: one line that puts a monitor on a model.

The module has another name than the function because a submodule would take the place of `esdmon.watch`.
"""

import itertools
import logging
import operator
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch.optim import Optimizer

from esdmon.alerts import AlertManager
from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError
from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.options import WatchKeywords, WatchOptions, shows_options
from esdmon.options.alerts import actions_for, rule_labels, usable_rules
from esdmon.options.modes import available_mode, resolved_mode, workers_for
from esdmon.options.sinks import Sinks, open_sinks
from esdmon.options.watch_options import check
from esdmon.runtime.clock import Clock
from esdmon.runtime.escalation import Escalation
from esdmon.runtime.monitor import Monitor
from esdmon.runtime.notes import Notes
from esdmon.runtime.optimizers import check_clock, held_optimizers, hookable
from esdmon.runtime.pipeline.pipeline import ReadingPipeline
from esdmon.runtime.ranks.assignments import Assignments
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.remote_reader import RemoteReader
from esdmon.runtime.ranks.requests import Requests
from esdmon.runtime.ranks.team import Team
from esdmon.runtime.reading.reader import Reader
from esdmon.runtime.readings import Readings
from esdmon.runtime.step_sampling import StepSampling
from esdmon.runtime.workers.executor import Executor, Mode
from esdmon.runtime.workers.processes import Processes
from esdmon.schedule import Schedule
from esdmon.schedule.budget import Budget
from esdmon.schedule.workers import Workers
from esdmon.torch_private import job_store, use_one_thread
from esdmon.weights import Drift, Model, Transfers
from esdmon.weights.names import unwrap

_log = logging.getLogger("esdmon")
_made = itertools.count()  # monitors of a distributed job
_watching: weakref.WeakKeyDictionary[Optimizer, list[tuple[weakref.ref[Monitor], int]]] = weakref.WeakKeyDictionary()
"""The monitors whose clock an optimizer is, each with the model it watches."""
_NOT_CALLED = (
    "step() of the {} that watch() was given was not called outside of backward(). If another optimizer trains, give "
    "watch() that one, or none, and call monitor.step()"
)


@explain_wrong_calls
@shows_options
def watch(
    model: Model,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    every: int | Schedule = 200,
    sinks: Sinks = "auto",
    hook: bool = True,
    first_step: int = 0,
    **options: Unpack[WatchKeywords],
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
            "process" copies them there, and has a process of its own read them, on Linux: for loops of many small
            operations, which a thread slows; "device" computes the eigenvalues of large matrices on their GPU, in the
            hook, and a thread does the rest, which is what "thread" and "process" do where no core is idle. "auto" is
            "thread" where the weights are on an accelerator or three of four cores are idle, else "sync".
        workers: threads or processes that read at once, each on one core, where cores are idle. Their time is not
            charged then, but what the steps of the training lose is measured, and held to the budget: "auto" for half
            of the idle cores at most, or the largest number on each rank; 0 charges the time of one in full, and
            computes no eigenvalues on a GPU except with the mode "device".
        sinks: where readings go: "tensorboard:DIR", "jsonl:PATH", "console", a sink of your own, or several of them.
            "auto": the run of Weights & Biases that is active, or else TensorBoard in a new folder under `runs/`, where
            it is installed; and JSONL in that folder.
            None: nowhere.
        alerts: "default" for all rules, None for none, names of rules and rules of your own, each of which takes the
            place of one of its name, or the path of a TOML file (`esdmon.alerts.config`) that sets thresholds and
            actions.
        on_alert: called with each `Alert` that begins, grows or ends.
        stop_on: names of rules: one that fires sets `monitor.should_stop`, and ends the training of a host.
        save_on: names of rules: one that fires asks for a checkpoint, which a host saves; a loop of your own asks
            `monitor.take_save_request()`.
        layers: fnmatch patterns on the names of matrices; None for all but embeddings, output heads and routers. One
            that matches nothing raises; in a job, where it matches nothing on any rank. `*/update` and `*/momentum`
            name what moves a weight.
        exclude: patterns of those to leave out.
        min_eigenvalues: matrices with fewer, over all slices, are left out.
        max_eigenvalues: matrices with more are left out: what costs the most.
        reference: the state that training starts from, as a model, a mapping or the path of a checkpoint: W − W₀ is
            read instead of W. A `state_dict()` of the model itself is copied.
        measures: "default", "all" (also those that need vectors, a shuffled copy or windows), or names.
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
    given = WatchOptions.from_keywords(
        {"every": every, "sinks": sinks, **options}, besides=("model", "optimizer", "hook", "first_step")
    )
    return attach(model, optimizer, given, hook=hook, first_step=first_step)


def attach(
    model: Model,
    optimizer: Any,
    options: WatchOptions,
    *,
    hook: bool = True,
    first_step: int = 0,
    limits: Limits | None = None,
    shares_requests: bool = True,
) -> Monitor:
    """Return a monitor of a model: `watch()` with options that are checked already.

    Args:
        model: as of `watch()`, as are the others.
        optimizer: one, several, wrappers of one, or None.
        options: what `watch()` was given.
        hook: whether the optimizer's steps are counted.
        first_step: steps that were taken before.
        limits: times and sizes that are fixed for users.
        shares_requests: whether all ranks of a job learn that an alert asks to stop or to save; False for a host that
            passes on what rank 0 knows.

    Raises:
        InputError: for options that cannot be used with this model or optimizer.
    """
    check("hook", hook)
    check("first_step", first_step)
    first_step = operator.index(first_step)
    limits = limits or Limits()
    faults = Faults(strict=options.strict, limits=limits)
    known = options.known
    known.isolate_with(faults)
    if optimizer is not None and hook:
        check_clock(optimizer, model)
    inner = _optimizers(optimizer)
    transfers = Transfers()
    given = available_mode(options.mode)
    processes = Processes() if given == "process" else None
    shared = _Shared(options, limits, faults, _ranks(limits))
    reader = Reader(
        model,
        known,
        measures=options.chosen_measures,
        selection=replace(options.selection, may_be_empty=shared.ranks is not None),
        reference=options.reference,
        precision=options.precision,
        optimizers=inner,
        faults=faults,
        drift=Drift(transfers),
        transfers=transfers,
        processes=processes,
    )
    if shared.ranks is not None:
        _raise_common(shared.ranks, reader.problems, limits)
    mode = resolved_mode(given, on_accelerator=reader.on_accelerator, on_device=reader.is_for_gpu, job=shared.size)
    transfers.waits = mode == "sync"
    rules = usable_rules(options.alert_config, reader.measures)
    hooked = inner[0] if inner and hook else None
    if hooked is not None:
        _close_older(hooked, model)
    budget, executor = _executor(shared, reader, mode, processes)
    readings, escalation = _readings(shared, reader, executor, budget, has_rules=bool(rules))
    actions = actions_for(options.alert_config, options.on_alert, known)
    monitor = Monitor(
        readings,
        schedule=options.schedule,
        sinks=open_sinks(options.sinks, known, webhook=options.alert_config.webhook) if shared.leads else (),
        alerts=AlertManager(rules if shared.leads else (), faults=faults, who=rule_labels(options.alert_config, known)),
        actions=actions,
        budget=budget,
        faults=faults,
        parts={"reader": reader},
        first_step=first_step,
        limits=limits,
        escalation=escalation,
        requests=Requests(shared.ranks if shares_requests and actions.can_request else None),
        notes=Notes() if hooked is None else Notes(_NOT_CALLED.format(type(hooked).__name__)),
    )
    if hooked is not None:
        monitor.at_close(Clock(hooked, monitor.hooked_step, faults).close)
        _watching.setdefault(hooked, []).append((weakref.ref(monitor), _identity(model)))
    reader.log_what_is_not_held()
    _log.info("esdmon: %s", reader.coverage)
    return monitor


@dataclass(frozen=True, slots=True)
class _Shared:
    """What several parts of one monitor are built with."""

    options: WatchOptions
    limits: Limits
    faults: Faults
    ranks: Coordinator | None
    """The ranks of the job; None for a process that is alone."""

    @property
    def size(self) -> int:
        """Return the number of ranks of the job."""
        return 1 if self.ranks is None else self.ranks.size

    @property
    def leads(self) -> bool:
        """Return whether this rank checks the rules and writes to the sinks."""
        return self.ranks is None or self.ranks.rank == 0


def _executor(shared: _Shared, reader: Reader, mode: Mode, processes: Processes | None) -> tuple[Budget, Executor]:
    """Return the budget of a monitor, and what finishes its readings within that budget."""
    options, limits = shared.options, shared.limits
    workers: Workers | None = None  # set below: workers need the clock of the budget, and the budget their rate
    budget = Budget(
        options.budget,
        # Beside a thread that reads, a block of this thread is charged its own CPU time; the other is charged apart.
        cpu_clock=time.process_time if mode == "sync" else time.thread_time,
        advance=limits.advance_seconds,
        rate=lambda: 0.0 if workers is None else workers.rate,
    )
    if mode not in ("sync", "device"):
        workers = workers_for(options, job=shared.size, clock=budget.training_clock)
    memory = limits.copied_bytes
    return budget, Executor(
        reader, budget, mode=mode, memory=memory, prepare=use_one_thread, workers=workers, processes=processes
    )


def _readings(
    shared: _Shared, reader: Reader, executor: Executor, budget: Budget, *, has_rules: bool
) -> tuple[Readings, Escalation | None]:
    """Return what reads on this rank, and what asks for extra readings: on rank 0, where there are rules."""
    limits, ranks = shared.limits, shared.ranks
    if ranks is not None and not shared.leads:
        return RemoteReader(reader, executor, ranks, limits=limits), None
    team = None
    if ranks is not None:
        own = Assignments(reader, executor, ranks, limits=limits)
        team = Team(ranks, own, shared.faults, limits=limits, escalates=has_rules)
    readings = ReadingPipeline(
        reader, executor, budget, team=team, max_tags=shared.options.max_tags, queue=limits.due_steps_under_way
    )
    if not has_rules:
        return readings, None
    return readings, Escalation(StepSampling(reader, budget), None if team is None else readings)


def _raise_common(ranks: Coordinator, problems: Mapping[str, InputError], limits: Limits) -> None:
    """Raise a problem of the selection that all ranks have: a stage of a pipeline may lack what others have.

    Raises:
        InputError: for the first of them.
    """
    common = ranks.common(problems, limits.rank_seconds)
    if common is None:
        _log.warning(
            "esdmon: not all ranks have called watch() in %g s, so rank %d goes on without what its model lacks: %s",
            limits.rank_seconds,
            ranks.rank,
            next(iter(problems.values())),
        )
        return
    for about, error in problems.items():
        if about in common:
            raise error


def _close_older(optimizer: Optimizer, model: Model) -> None:
    """Close a monitor of the same optimizer and model: a notebook cell that ran again."""
    for reference, watched in _watching.pop(optimizer, ()):
        older = reference()
        if older is not None and not older.closed:
            if watched == _identity(model):
                _log.warning(
                    "esdmon: another monitor already watched this model and optimizer. It is closed now, at step %d. "
                    "To watch one model twice, leave the optimizer out of the second watch() and call its step().",
                    older.steps,
                )
                older.close()
            else:
                _watching.setdefault(optimizer, []).append((reference, watched))


def _identity(model: Model) -> int:
    return id(unwrap(model)) if isinstance(model, torch.nn.Module) else id(model)


def _ranks(limits: Limits) -> Coordinator | None:
    """Return the ranks of this job; None for a process that is alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    # Monitors are made in the same order on all ranks, so those that belong together share a prefix.
    store = job_store(f"esdmon/{next(_made)}")
    return Coordinator(store, distributed.get_rank(), distributed.get_world_size(), timeout=limits.rank_seconds)


def _optimizers(given: Any) -> tuple[Optimizer, ...]:
    """Return the torch optimizers inside what was given, one or a list of several, and those that they hold.

    A container such as torchtitan's knows no learning rate and no momentum: the optimizers that it holds do.
    """
    if given is None:
        return ()
    found = tuple(map(hookable, given if isinstance(given, list | tuple) else (given,)))
    if not found:
        raise InputError("optimizer is an empty list: give one, or leave it out and call monitor.step()")
    return (*found, *itertools.chain.from_iterable(map(held_optimizers, found)))
