"""`esdmon demo`: train a small network on digits, let it go wrong and recover, and say what happened.

For three eighths of the run training is healthy. Then weight decay is set far too strong, as by a slip in a
configuration: the layers lose their bulk of noise, then directions, and alerts fire. After another three eighths the
weights from before the fault are restored, as a person would do it who has read the alert, and the alerts end.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from esdmon.cli import live
from esdmon.cli.digits import accuracy, batches, digits, train_step
from esdmon.errors import InputError, unwritable
from esdmon.notice import nearby
from esdmon.records import Alert, Report
from esdmon.records.outcome import without_prefix
from esdmon.records.text import named
from esdmon.records.timeline import Timeline
from esdmon.spectrum import Phase
from esdmon.watching import watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

READINGS = 80
"""Approximate number of readings in a run."""
WIDTH = 256
"""Units of a hidden layer."""
DECAY = 0.1
"""The weight decay that is far too strong; common values are 1e-4 to 5e-3 for SGD."""
_PROGRESS_LINES = 3  # below the overview: a blank line, the progress and the line of the cursor
_HELD_BACK = 297  # of 1797 digits
_PLAIN = {
    Phase.RANDOM_LIKE: "noise: nothing is learned yet",
    Phase.BLEEDING_OUT: "structure begins to show",
    Phase.BULK_SPIKES: "a few directions are learned",
    Phase.BULK_DECAY: "the bulk of noise dissolves into a tail",
    Phase.HEAVY_TAILED: "only a heavy tail is left",
    Phase.RANK_COLLAPSE: "directions are lost",
    Phase.UNCLASSIFIED: "no phase fits",
}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Arguments of the demo."""

    batch_size: int = 30
    lr: float = 0.02
    epochs: int = 32
    seed: int = 0
    out: str = "runs/demo"
    healthy: bool = False
    """Leave out the fault."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a step, in plain words."""

    step: int
    text: str
    style: str = ""
    """A style of rich."""


class Classifier(nn.Sequential):
    """Three hidden layers of 256 units on 64 pixels, all with M >= 64; the output layer is not watched."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.relu1 = nn.Linear(64, WIDTH), nn.ReLU()
        self.fc2, self.relu2 = nn.Linear(WIDTH, WIDTH), nn.ReLU()
        self.fc3, self.relu3 = nn.Linear(WIDTH, WIDTH), nn.ReLU()
        self.head = nn.Linear(WIDTH, 10)


@final
class Story:
    """What happens to the training on purpose: a fault, and the recovery from it.

    Args:
        model: what trains.
        optimizer: its weight decay is changed.
        steps: of the whole run.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self._model, self._optimizer = model, optimizer
        self.fault, self.recovery = steps * 3 // 8, steps * 6 // 8
        """Steps after which weight decay is set too strong, and the weights are restored."""
        self.events: list[Event] = []
        self._saved: dict[str, Tensor] = {}

    def after(self, step: int, held_back: float) -> None:
        """Do what is due after a step; `held_back` is the accuracy on digits that are held back."""
        if step == self.fault:
            self._saved = {name: value.clone() for name, value in self._model.state_dict().items()}
            self._decay(DECAY)
            text = f"THE FAULT: weight decay is set to {DECAY:g}, far too strong"
            self.events.append(Event(step, f"{text} (accuracy {held_back:.3f})", "bold red"))
        elif step == self.recovery:
            self._model.load_state_dict(self._saved)
            self._optimizer.state.clear()
            self._decay(0.0)
            text = f"THE REMEDY: no weight decay, and the weights of step {self.fault} are restored"
            self.events.append(Event(step, f"{text} (accuracy was {held_back:.3f})", "bold green"))

    def _decay(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["weight_decay"] = value


def run(settings: DemoOptions) -> Report:
    """Train the network, show its readings and say what happened; return the last reading.

    Raises:
        InputError: if `out` cannot be written, or an extra is missing.
    """
    console = live.console("demo")
    images, labels = digits(side=8)
    if not settings.out.strip():
        raise InputError("--out is empty: give a folder for the data, such as runs/demo")
    out = _free_folder(Path(settings.out))
    torch.manual_seed(settings.seed)
    timeline, story, held_back = _train(settings, images.flatten(1), labels, out, console)
    return _conclude(timeline, story, held_back, out, console)


def _train(
    settings: DemoOptions, images: Tensor, labels: Tensor, out: Path, console: Console
) -> tuple[Timeline, Story, float]:
    """Train, and return the course of the run, what was done to it, and the accuracy on digits that are held back."""
    from rich.console import Group  # noqa: PLC0415 -- optional
    from rich.live import Live  # noqa: PLC0415

    train, test = slice(_HELD_BACK, None), slice(_HELD_BACK)
    count = len(images) - _HELD_BACK
    steps = settings.epochs * math.ceil(count / settings.batch_size)
    every = max(1, steps // READINGS)
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    story = Story(model, optimizer, steps)
    indices = itertools.islice(batches(count, settings.batch_size, seed=settings.seed), steps)
    course = _Course()
    sinks: list[Any] = [f"tensorboard:{out / 'spectra'}", f"jsonl:{out / 'esdmon.jsonl'}", course]
    held_back = 0.0
    monitor = watch(model, optimizer, every=every, budget=None, sinks=sinks, exclude=["head"])
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 -- watch() has explained it if it is missing

    with _closing(monitor), SummaryWriter(str(out / "training")) as curves:
        progress, task = _progress(steps, console)
        with Live(progress, console=console, refresh_per_second=4) as shown:
            for step, index in enumerate(indices, start=1):
                loss, _ = train_step(model, optimizer, images[train][index], labels[train][index])
                progress.update(task, advance=1, loss=f"{loss:.4f}")
                if step % every == 0 or step == steps:
                    held_back = accuracy(model, images[test], labels[test])
                    decay = optimizer.param_groups[0]["weight_decay"]
                    values = {"loss": loss, "accuracy_held_back": held_back, "weight_decay": decay}
                    for name, value in values.items():
                        curves.add_scalar(f"training/{name}", value, step)
                    progress.update(task, accuracy=f"{held_back:.3f}")
                    height = console.height - _PROGRESS_LINES
                    overview = live.overview(course.timeline, width=console.width, height=height)
                    shown.update(Group(overview, "", progress))
                if not settings.healthy:
                    story.after(step, held_back)
    return course.timeline, story, held_back


@final
class _Course:
    """A sink that keeps the course of the run."""

    def __init__(self) -> None:
        self.timeline = Timeline()

    def write(self, report: Report) -> None:
        self.timeline.take(report)

    def alert(self, alert: Alert) -> None:
        self.timeline.alert(alert)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def _closing(monitor: Any) -> Iterator[None]:
    """Close a monitor at the end, without its summary: the demo has one of its own."""
    log = logging.getLogger("esdmon")
    try:
        yield
    finally:
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            monitor.close()
        finally:
            log.setLevel(level)


def _conclude(timeline: Timeline, story: Story, held_back: float, out: Path, console: Console) -> Report:
    from rich.table import Table  # noqa: PLC0415 -- optional
    from rich.text import Text  # noqa: PLC0415

    report = timeline.last
    if report is None:
        raise InputError("no reading was taken; see the log of esdmon for the reason")
    quiet = "" if timeline.episodes else "; no alert has fired"
    end = Event(report.step, f"the end: accuracy {held_back:.3f} on {_HELD_BACK} digits that were held back{quiet}")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    for event in [*_chronology(timeline, story.events), end]:
        table.add_row(str(event.step), Text(event.text, style=event.style))
    console.print("\n[bold]What happened[/], by step\n")
    console.print(table)
    folder = nearby(out)
    console.print("\n[bold]Look[/]\n")
    for line in (
        f"tensorboard --logdir {folder}",
        "    in the browser: tab ESD for the phases of all layers, their spectra and the alerts,",
        "    tab TIME SERIES for training/loss and training/accuracy_held_back over the same steps",
        f"esdmon tail {folder} --once",
        "    the last reading, in this terminal",
        f"esdmon report {folder} -o report.html",
        "    the same as the tab, as one file",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return report


def _chronology(timeline: Timeline, events: list[Event]) -> list[Event]:
    """Return what was done, what the alerts said, and how the phases changed, in order of steps."""
    changes: dict[tuple[int, str], list[str]] = {}
    for name, stages in timeline.stages.items():
        for stage in stages:
            changes.setdefault((stage.step, stage.state), []).append(name)
    plain = {phase.value: text for phase, text in _PLAIN.items()}
    found = [
        Event(step, f"{named(names)}: {state}{f', {plain[state]}' if state in plain else ''}")
        for (step, state), names in changes.items()
    ]
    for episode in timeline.episodes:
        alert = episode.first
        text = f"ALERT {alert.rule}: {named(alert.layers)}: {without_prefix(alert)}"
        found.append(Event(episode.began, text, "yellow"))
        if episode.ended is not None:
            found.append(Event(episode.ended, f"resolved: {alert.rule}", "green"))
    return sorted([*found, *events], key=lambda event: event.step)


def _free_folder(out: Path) -> Path:
    """Create and return `out`, or `out-2`, `out-3`, … if it is not empty: two runs in one folder would mix curves."""
    if out.name in ("", ".."):
        out = out.resolve()
    for folder in itertools.chain([out], (out.parent / f"{out.name}-{n}" for n in itertools.count(2))):
        if folder != out and not out.name:
            raise InputError(f"--out {out} cannot be used: it is not empty. Choose another folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                probe = folder / ".esdmon"
                probe.touch()
                probe.unlink()
                return folder
        except OSError as error:
            raise unwritable(f"--out {folder}", error) from error
    raise AssertionError


def _progress(steps: int, console: Console) -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    progress = Progress(
        TextColumn("training"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )
    return progress, progress.add_task("training", total=steps, loss="", accuracy="")
