"""Define `watch`, which attaches a monitor to a model.

The module is not named `watch`, because a submodule of this name would replace the function `esdmon.watch`.
"""

import itertools
import logging
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import torch
from torch.optim import Optimizer

from esdmon.alerts import AlertManager
from esdmon.calls import explain_wrong_calls
from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.options import WatchKeywords, WatchOptions, shows_options
from esdmon.options.alerts import actions_for, rule_labels, usable_rules
from esdmon.options.modes import available_mode, resolved_mode, workers_for
from esdmon.options.sinks import Sinks, open_sinks
from esdmon.options.watch_options import check
from esdmon.runtime.clock import Clock
from esdmon.runtime.context import Context
from esdmon.runtime.escalation import Escalation
from esdmon.runtime.monitor import Monitor
from esdmon.runtime.older_monitors import close_older, remember
from esdmon.runtime.optimizers import check_clock, optimizers_in
from esdmon.runtime.pipeline.pipeline import ReadingPipeline
from esdmon.runtime.ranks.agreement import raise_common
from esdmon.runtime.ranks.assignments import Assignments
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.ranks.remote_reader import RemoteReader
from esdmon.runtime.ranks.requests import Requests
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.runtime.readings import Readings
from esdmon.runtime.step_sampling import StepSampling
from esdmon.runtime.usage_hints import UsageHints
from esdmon.runtime.workers.executor import Executor, Mode
from esdmon.runtime.workers.processes import Processes
from esdmon.schedule import Schedule
from esdmon.schedule.budget import Budget
from esdmon.schedule.workers import Workers
from esdmon.weights import Drift, Model, Transfers, opened
from esdmon.weights.torch_private import job_store, outside_dispatch_modes, use_one_thread

_log = logging.getLogger("esdmon")
_made = itertools.count()  # monitors of a distributed job
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

    The weights are read after the optimizer's step. Losses and random numbers of the run stay the same to the last bit.
    `every` sets when matrices are read, and `budget` how many.

    Args:
        model: the model that trains. Move it to its device before the call.
        optimizer: an optimizer whose steps are counted; of several, the steps of the first count. None: call
            `monitor.step()` after each step yourself.
        every: steps between readings, or a function of the step that returns whether to read at it.
        budget: the largest share of the run's time, and of its CPU time, that watching may take. Each due step reads at
            least one matrix; those that are most out of date for their cost come first. None: read all at each.
        mode: "sync" reads in the optimizer's hook. "thread" copies weights in the hook, and a thread reads the copies
            while training continues. "process" has another process read them, on Linux, for loops of many small
            operations, which a thread would slow. "device" computes the eigenvalues of large matrices on their GPU in
            the hook, and the rest in a thread; the modes "thread" and "process" do the same if no core is idle. "auto"
            is "thread" if the weights are on an accelerator or three of four cores are idle, else "sync".
        workers: number of threads or processes that read in parallel, each on an idle core. The budget is not charged
            for their time, but for the measured delay of the training's steps. "auto": up to half of the idle cores. A
            number: at most this many on each rank. 0: one, whose time is charged in full; eigenvalues are computed on
            a GPU only with the mode "device".
        sinks: where readings go: "tensorboard:DIR", "jsonl:PATH", "console", a sink of your own, or a list of them.
            "auto": the active run of Weights & Biases, or else TensorBoard, if installed, in a new folder under
            `runs/`; and JSONL in that folder. None: nowhere.
        alerts: "default" for all rules, None for none, or a list of names of rules and rules of your own (one with the
            name of a built-in rule replaces it), or the path of a TOML file with thresholds and actions
            (`esdmon.alerts.config`).
        on_alert: a function, called with each `Alert` that begins, grows or ends.
        stop_on: names of rules; if one fires, `monitor.should_stop` turns True, and a Trainer ends the training.
        save_on: names of rules; if one fires, a Trainer saves a checkpoint. In your own loop check
            `monitor.take_save_request()`.
        layers: fnmatch patterns on the names of matrices; None for all but embeddings, output heads and routers. A
            pattern that matches nothing, in a job on no rank, raises. `*/update` and `*/momentum` match the updates
            of weights and the optimizer's momenta.
        exclude: fnmatch patterns of matrices to leave out.
        min_eigenvalues: leave out matrices with fewer eigenvalues, counted over all slices.
        max_eigenvalues: leave out matrices with more eigenvalues; these cost the most.
        reference: a model, a mapping or the path of a checkpoint with the initial weights W₀. W − W₀ is read instead of
            W. A `state_dict()` of the model itself is copied.
        measures: "default", "all" (also those that need vectors, a shuffled copy or windows), or names.
        precision: "auto" (float32 if no verdict depends on the difference) or "exact" (float64).
        max_tags: largest number of series of layers in TensorBoard, W&B and loggers, see `esdmon.present.scalars`; None
            for all. The JSONL always has all.
        strict: raise errors that occur while watching, instead of logging them. For tests.
        plugins: modules or objects with hooks, besides the installed ones.
        hook: False for a Trainer that counts steps itself and calls `monitor.step()`. The optimizer is then used only
            to look up which weights it holds, and their settings.
        first_step: steps taken before, for a run that is resumed without a state of the monitor.

    Returns:
        A `Monitor`, which is a context manager: leaving the block closes it.

    Raises:
        InputError: a ValueError, for an argument that cannot be used; before training, never during it.

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
    """Return a monitor of a model; `watch()` calls this function with its validated options.

    Args:
        model: the same as for `watch()`.
        optimizer: one, several, wrappers of one, or None.
        options: the options of `watch()`.
        hook: whether the optimizer's steps are counted.
        first_step: steps taken before.
        limits: times and sizes that users cannot set.
        shares_requests: whether requests of alerts to stop or to save are sent to all ranks of a job; False for a
            Trainer that sends them itself.

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
    optimizers = optimizers_in(optimizer)
    hooked = optimizers[0] if optimizers and hook else None
    given = available_mode(options.mode)
    processes = Processes() if given == "process" else None
    shared = _Shared(options, limits, faults, _ranks(limits))
    reader = _reader(shared, model, optimizers, processes)
    mode = resolved_mode(
        given, on_accelerator=reader.model.on_accelerator, on_device=reader.gpu.is_useful, job=shared.size
    )
    reader.transfers.waits = mode == "sync"
    rules = usable_rules(options.alert_config, reader.measures)
    free = partial(close_older, hooked, model)
    webhook = options.alert_config.webhook
    sinks = open_sinks(options.sinks, known, webhook=webhook, free_addresses=free) if shared.leads else []
    free()  # not before the sinks are open: a call that raises leaves the older monitor as it was
    budget, executor = _executor(shared, reader, mode, processes)
    readings, escalation = _readings(shared, reader, executor, budget, has_rules=bool(rules))
    actions = actions_for(options.alert_config, options.on_alert, known)
    context = Context(
        limits=limits,
        faults=faults,
        budget=budget,
        requests=Requests(shared.ranks if shares_requests and actions.can_request else None),
        hints=UsageHints() if hooked is None else UsageHints(_NOT_CALLED.format(type(hooked).__name__)),
    )
    monitor = Monitor(
        readings,
        schedule=options.schedule,
        sinks=sinks,
        alerts=AlertManager(rules if shared.leads else (), faults=faults, who=rule_labels(options.alert_config, known)),
        actions=actions,
        escalation=escalation,
        reader=reader,
        first_step=first_step,
        context=context,
        around=outside_dispatch_modes,
    )
    if hooked is not None:
        monitor.at_close(Clock(hooked, monitor.hooked_step, faults).close)
        remember(monitor, hooked, model)
    reader.held.log_what_is_not_held(reader.matrices, reader.model.named_parameters)
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


def _reader(shared: _Shared, model: Model, optimizers: Sequence[Optimizer], processes: Processes | None) -> Reader:
    """Return what reads the matrices of a model; raise a problem of the selection, in a job one that all ranks have."""
    options, ranks, transfers = shared.options, shared.ranks, Transfers()
    reading = ReadingOptions(
        options.chosen_measures,
        selection=replace(options.selection, may_be_empty=ranks is not None),
        reference=None if options.reference is None else opened(options.reference),
        precision=options.precision,
        processes=processes,
    )
    reader = Reader(
        opened(model),
        options.known,
        reading,
        optimizers=optimizers,
        faults=shared.faults,
        drift=Drift(transfers),
        transfers=transfers,
    )
    if ranks is not None:
        raise_common(ranks, reader.model.problems)
    return reader


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
    job = None
    if ranks is not None:
        own = Assignments(reader, executor, ranks, limits=limits)
        job = DistributedJob(ranks, own, shared.faults, budget, limits=limits, escalates=has_rules)
    readings = ReadingPipeline(
        reader, executor, budget, job=job, max_tags=shared.options.max_tags, queue=limits.due_steps_under_way
    )
    if not has_rules:
        return readings, None
    return readings, Escalation(StepSampling(reader.steps, budget), None if job is None else readings)


def _ranks(limits: Limits) -> Coordinator | None:
    """Return the ranks of this job; None for a process that is alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    # Monitors are made in the same order on all ranks, so those that belong together share a prefix.
    store = job_store(f"esdmon/{next(_made)}")
    return Coordinator(store, distributed.get_rank(), distributed.get_world_size(), timeout=limits.rank_seconds)
