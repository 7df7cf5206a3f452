"""Further cases of what can happen to a run of Weights & Biases; `wandb_ways` runs them in its process."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import wandb
from torch import nn

import esdmon
from esdmon import Alert
from esdmon.records import Coverage, Esd, LayerReport, Report
from esdmon.records.timeline import Timeline
from esdmon.sinks import MemorySink
from esdmon.spectrum import Phase
from esdmon_wandb import ActiveRunSink, WandbSink

CASES: dict[str, Callable[[Path], Any]] = {}
ESD = Esd(-2.0, 1.0, (1, 3, 2))


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Register a case: it takes a folder of its own, and returns what the test looks at."""
    CASES[function.__name__] = function
    return function


def begin(folder: Path, mode: Any = "offline", **options: Any) -> Any:
    """Begin a run in a folder."""
    settings = wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,  # which takes ten times as long as all else
    )
    return wandb.init(mode=mode, dir=folder, project="p", settings=settings, **options)


def logged(function: Callable[[], object]) -> list[str]:
    """Return the lines that are logged, from INFO on, while a function runs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("esdmon")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        function()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return lines


def report(step: int, *layers: LayerReport) -> Report:
    """Return a report of these layers at a step."""
    return Report(step, layers, Coverage(1, 1), 0.1)


def layer(name: str, step: int, phase: Phase = Phase.BULK_DECAY, **measures: float) -> LayerReport:
    """Return a layer that was read at a step."""
    return LayerReport(name, "ok", step, N=64, M=64, phase=phase, measures=measures, esd=ESD)


@case
def alert(folder: Path) -> None:
    weight = nn.Parameter(torch.randn(96, 128))

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

    with begin(folder), esdmon.watch(Module(), every=1, budget=None, sinks="wandb") as monitor:
        monitor.step()
        weight.data[3, 3] = float("nan")
        monitor.step()


@case
def auto(folder: Path) -> list[str]:
    os.chdir(folder)
    with begin(folder), esdmon.watch(nn.Linear(64, 64), every=1) as monitor:
        monitor.step()
    return sorted(path.name for path in (folder / "runs").glob("*/*"))


@case
def finished_in_training(folder: Path) -> Any:
    other = MemorySink()
    run = begin(folder)
    monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, sinks=["wandb", other])
    monitor.step()
    run.finish()

    def go_on() -> None:
        for _ in range(4):
            monitor.step()
        monitor.close()

    lines = logged(go_on)
    return len(other.reports), [(fault.who, fault.message) for fault in monitor.errors], lines


@case
def finished_before_the_monitor_was_closed(folder: Path) -> Any:
    with begin(folder):
        monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, sinks="wandb")
        for _ in range(3):
            monitor.step()
    return len(monitor.errors), logged(monitor.close)


@case
def disabled(folder: Path) -> Any:
    with begin(folder, "disabled") as run:
        monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, sinks=["wandb"])

        def go() -> None:
            for _ in range(3):
                monitor.step()
                run.log({"loss": 1.0})
            monitor.close()

        return logged(go), len(monitor.errors), wandb.run is run


@case
def two_models(folder: Path) -> list[str]:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(64, 64)) for _ in range(2)]
    with begin(folder) as run:
        monitors = [esdmon.watch(model, every=2, budget=None, sinks="wandb", alerts=None) for model in models]

        def train() -> None:
            for i in range(4):
                for monitor in monitors:
                    monitor.step()
                run.log({"i": i})

        lines = logged(train)
        monitors[0].close()
        again = esdmon.watch(models[1], every=1, budget=None, sinks="wandb", alerts=None)
        again.step()
        for monitor in (monitors[1], again):
            monitor.close()
    return lines


@case
def begun_after_watch(folder: Path) -> list[str]:
    monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, sinks="wandb:auto")
    monitor.step()
    with begin(folder) as run:

        def train() -> None:
            for i in range(2):
                monitor.step()
                run.log({"i": i})
            monitor.close()

        return [line for line in logged(train) if "was begun" in line]


@case
def where_a_run_is_that_is_begun_later(folder: Path) -> list[str]:
    sink = ActiveRunSink()
    places = [sink.where()]
    with begin(folder) as run:
        sink.write(report(1, layer("a", 1, alpha=2.0)))
        places.append(sink.where())
        sink.close()
        return [*places, sink.where(), run.id]


@case
def begun_twice_after_watch(folder: Path) -> Any:
    monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, sinks="wandb:auto")
    rows = []
    for name in ("first", "second"):
        with begin(folder / name) as run:
            for i in range(2):
                monitor.step()
                run.log({"i": i})
            rows.append(run.step)
        monitor.step()  # between two runs there is none to write to
    monitor.close()
    return [rows, [fault.who for fault in monitor.errors]]


@case
def closed_before_tests(folder: Path) -> Any:
    with begin(folder) as run:
        sink = WandbSink(run)
        run.log({"loss": 1.0})
        sink.write(report(1, layer("a", 1, alpha=2.0)))
        run.log({"loss": 2.0})
        before = run.step
        sink.close()
        after = run.step
        run.log({"test": 1.0}, step=2)
    return before, after


@case
def overwritten(folder: Path) -> Any:
    """At 1 both layers are read, at 2 `a`, at 3 `b`, whose alpha is undefined then; the user logs before and after."""
    with begin(folder) as run:
        sink = WandbSink(run)
        run.log({"loss": 1.0})
        sink.write(report(1, layer("a", 1, alpha=2.0), layer("b", 1, alpha=3.0)))
        first = run.summary.get("esdmon_alpha/a")
        sink.write(report(2, layer("a", 2, alpha=4.0), layer("b", 1, alpha=3.0)))
        live = run.summary.get("esdmon_alpha/a"), run.summary.get("esdmon/step")
        sink.write(report(3, layer("a", 2, alpha=4.0), layer("b", 3, alpha=float("nan"))))
        run.log({"loss": 2.0})
        sink.write(report(4, layer("a", 2, alpha=4.0), layer("b", 4, alpha=5.0)))
        counts = sink.written, sink.overwritten
        lines = logged(sink.close)
    return first, live, counts, lines


@case
def rows_of_tensorboard(folder: Path) -> list[str]:
    """The user logs to TensorBoard only, and W&B reads its files: no row is logged by `run.log`."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        with begin(folder, sync_tensorboard=True) as run:
            sink, writer = WandbSink(run), SummaryWriter(folder / "tensorboard")
            for step in (1, 2, 3):
                sink.write(report(step, layer("a", step, alpha=2.0)))
                writer.add_scalar("loss", 0.5, step)
            writer.close()
            return logged(sink.close)
    finally:
        wandb.tensorboard.unpatch()  # type: ignore[attr-defined]


@case
def pictures(folder: Path) -> Any:
    """Three layers change phase at once, and only two of them are drawn while the model trains."""
    names = ("a.b", "c", "d*")
    with begin(folder) as run:
        sink = WandbSink(run)
        sink.write(report(1, *(layer(name, 1) for name in names)))
        run.log({"i": 0})
        sink.write(report(2, *(layer(name, 2, Phase.HEAVY_TAILED) for name in names)))
        run.log({"i": 1})
        left = [sink.catch_up(), sink.catch_up()]
        run.log({"i": 2})
        sink.close()
    return left


@case
def alerts_of_a_finished_run(folder: Path) -> str:
    with begin(folder) as run:
        sink = WandbSink(run)
    try:
        sink.alert(Alert("1", "rule", "warning", "firing", "a", ("a",), 1, 1, "a message"))
    except RuntimeError as error:
        return str(error)
    return ""


@case
def rewound(folder: Path) -> list[float]:
    with begin(folder) as run:
        sink = WandbSink(run)
        for step in (1, 2, 3):
            sink.write(report(step, layer("a", step, alpha=float(step))))
        sink.rewind(1)
        for step in (2, 3):
            sink.write(replace(report(step, layer("a", step, alpha=10.0 * step))))
        sink.close()
    (table,) = folder.rglob("esdmon_readings*.table.json")
    return wandb_table(table)["esdmon_alpha/a"]


@case
def resumed(folder: Path) -> None:
    """By a process that has not seen the alert, in a run that is begun after `watch()`."""
    course = Timeline()
    course.alert(Alert("1", "rule", "warning", "firing", "a", ("a",), 1, 1, "a message"))
    sink = ActiveRunSink()
    sink.rewind(1)
    sink.resume(course)
    with begin(folder):
        sink.write(report(2, layer("a", 2)))
        sink.close()


def wandb_table(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a table that W&B wrote."""
    table = json.loads(path.read_text())
    return {name: [row[k] for row in table["data"]] for k, name in enumerate(table["columns"])}
