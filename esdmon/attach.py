"""`watch`: one line that puts a monitor on a model.

Named so, and not `watch`, because a submodule would take the place of the function `esdmon.watch`.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from esdmon.alerts import AlertRule
from esdmon.analysis import Reader
from esdmon.errors import InputError, as_list, nearest, unwritable
from esdmon.faults import Faults
from esdmon.monitor import Monitor
from esdmon.plugins import Plugins
from esdmon.schedule import Schedule, as_schedule, never
from esdmon.sinks import Sink
from esdmon.weights import MIN_EIGENVALUES, Drift, Model, Selection

_log = logging.getLogger("esdmon")


def watch(
    model: Model,
    optimizer: Optimizer | None = None,
    *,
    every: int | Schedule = 200,
    sinks: str | Sink | Sequence[str | Sink] | None = "auto",
    alerts: str | Sequence[str | AlertRule] | None = "default",
    layers: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
    max_eigenvalues: int | None = None,
    reference: Model | str | os.PathLike[str] | None = None,
    measures: str | Sequence[str] = "default",
    precision: str = "auto",
    strict: bool = False,
    plugins: Iterable[object] = (),
) -> Monitor:
    """Watch a model's spectra while it trains.

    The weights are read after the optimizer's step, on the training thread, and nothing else of the run is touched:
    losses and random numbers are the same to the last bit.

    Args:
        model: what trains; call after it is on its device.
        optimizer: its steps are counted. None: call `monitor.step()` after each step yourself.
        every: steps between readings, or a function of the step that says when to read.
        sinks: where readings go: "tensorboard:DIR", "jsonl:PATH", "console", a sink of your own, or several of them.
            "auto": TensorBoard in a new folder under `runs/`, where it is installed, and JSONL beside it.
            None: nowhere.
        alerts: "default" for all rules, None for none, or names of rules and rules of your own.
        layers: fnmatch patterns on the names of matrices; None for all but embeddings, output heads and routers.
        exclude: patterns of those to leave out.
        min_eigenvalues: matrices with fewer, over all slices, are left out.
        max_eigenvalues: matrices with more are left out: what costs the most.
        reference: the state that training starts from, as a model, a mapping or the path of a checkpoint: W − W₀ is
            read instead of W. A `state_dict()` of the model itself is copied.
        measures: "default", "all" (with those that need eigenvectors or a shuffled copy), or names of measures.
        precision: "auto" (float32 where no verdict depends on it) or "exact" (float64).
        strict: raise what fails while watching, instead of logging it and going on. For tests.
        plugins: modules or objects with hooks, besides those that are installed.

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
    schedule = as_schedule(every)
    faults = Faults(strict=strict)
    known = Plugins(plugins)
    inner = None if optimizer is None else _unwrap(optimizer)
    reader = Reader(
        model,
        known,
        selection=Selection(layers, exclude, min_eigenvalues, max_eigenvalues),
        reference=reference,
        measures=measures,
        precision=precision,
        optimizer=inner,
        faults=faults,
        drift=Drift(),
    )
    rules = _choose_rules(alerts, known.rules)
    writes = _is_writer()
    monitor = Monitor(
        reader.read,
        # Replicated weights are the same on every rank: one reads and writes, and the others do nothing.
        schedule=schedule if writes else never,
        sinks=_open_sinks(sinks, known) if writes else (),
        rules=rules,
        on_alert=known.on_alert,
        faults=faults,
        parts={"reader": reader},
    )
    if inner is not None:
        _hook(inner, monitor)
        if not reader.any_in_optimizer:
            _log.warning("esdmon: the optimizer holds none of the weights that are watched: is it this model's?")
    _log.info("esdmon: %s", reader.coverage)
    return monitor


def _hook(optimizer: Optimizer, monitor: Monitor) -> None:
    """Call `monitor.step()` after each step of the optimizer.

    A subclass whose `step()` calls `super().step()` fires the hooks of both. Whether a step is inside another is read
    off the stack, and not kept as a count, which an exception in mid-step would leave wrong.
    """
    # What torch wraps around the step of every optimizer class: one function, so one code object.
    wrapper = getattr(type(optimizer).step, "__code__", None)

    def after(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        frame, depth = inspect.currentframe(), 0
        while frame is not None:
            depth += frame.f_code is wrapper and frame.f_locals.get("self") is optimizer
            frame = frame.f_back
        if depth <= 1:
            monitor.step()

    # Under a compiled step the hook would be traced, and its numpy turned into torch.
    untraced: Callable[[Any], Any] = torch.compiler.disable
    monitor.at_close(optimizer.register_step_post_hook(untraced(after)).remove)


def _unwrap(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers such as Accelerate's, whose own hooks do not work."""
    while not hasattr(optimizer, "_optimizer_step_post_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        msg = (
            f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer: leave it out and call "
            "monitor.step() after each step"
        )
        raise InputError(msg)
    return optimizer


def _open_sinks(sinks: str | Sink | Sequence[str | Sink] | None, known: Plugins) -> list[tuple[str, Sink]]:
    if sinks is None:
        return []
    given: Sequence[str | Sink] = [sinks] if isinstance(sinks, str) or not isinstance(sinks, Sequence) else sinks
    several = [each for spec in given for each in (_automatic(known) if spec == "auto" else [spec])]
    opened: list[tuple[str, Sink]] = []
    try:
        for spec in several:
            name = spec if isinstance(spec, str) else type(spec).__name__
            opened.append((name, known.open_sink(spec)))
    except BaseException:
        for _, sink in opened:
            sink.close()
        raise
    return opened


def _automatic(known: Plugins) -> list[str | Sink]:
    name = f"runs/esdmon-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    for n in itertools.count(1):
        folder = Path(name if n == 1 else f"{name}-{n}")
        try:
            # Made here, and not by a sink, so that of several runs started in one second each gets its own.
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise unwritable(str(folder), error) from error
    _log.info("esdmon: writing to %s", folder)
    sinks: list[str | Sink] = [f"jsonl:{folder / 'esdmon.jsonl'}"]
    if "tensorboard" in known.schemes and find_spec("tensorboard") is not None:
        sinks.insert(0, f"tensorboard:{folder}")
    return sinks


def _choose_rules(alerts: str | Iterable[str | AlertRule] | None, known: Mapping[str, AlertRule]) -> list[AlertRule]:
    chosen: list[AlertRule] = []
    for rule in () if alerts is None else as_list("alerts", alerts, "the names of rules, or rules"):
        if isinstance(rule, AlertRule):
            chosen.append(rule)
        elif rule == "default":
            chosen += known.values()
        elif rule in known:
            chosen.append(known[rule])
        else:
            msg = f"alerts={rule!r} is no rule; there are {', '.join(known)}.{nearest(str(rule), known)}"
            raise InputError(msg)
    return chosen


def _is_writer() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)
