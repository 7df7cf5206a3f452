"""What is known of a model at one step: `Report`, and how much of the model it covers, `Coverage`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from esdmon.errors import nearest
from esdmon.records.layer import LayerReport
from esdmon.records.summary import summarize
from esdmon.records.text import age_lines, grouped, layer_table
from esdmon.records.values import Record, jsonable


@dataclass(frozen=True, slots=True)
class Skipped:
    """A parameter that is not watched, and why."""

    name: str
    n_parameters: int
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a monitor sees of a model."""

    watched: int
    """Parameters (elements) in the matrices that are read."""
    total: int
    """Parameters of the model."""
    skipped: tuple[Skipped, ...] = ()

    @property
    def share(self) -> float:
        """watched/total, in [0, 1]."""
        return self.watched / self.total if self.total else 0.0

    def __str__(self) -> str:
        """One line, and one for each reason."""
        lines = [f"watching {self.share:.1%} of {self.total:,} parameters"]
        lines += [f"  not {line}" for line in grouped((skip.reason, skip.name) for skip in self.skipped)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a model at one step. `print(report)` is the table, `report["name"]` a layer.

    A layer that was not read at this step is there as it was read last: its `step` is that of its weights, its `age`
    the steps since.
    """

    step: int
    layers: tuple[LayerReport, ...]
    coverage: Coverage
    seconds: float = math.nan
    """What the readings of this step took."""
    waiting: tuple[str, ...] = ()
    """Matrices that have not been read yet: their turn comes as the budget allows."""
    overhead: float = math.nan
    """The monitor's share of the run so far."""
    host_step: int | None = None
    """The host's own step (a Trainer's), where there is a host."""
    firing: Mapping[str, int] = field(default_factory=dict)
    """For each alert rule that has fired in the run, in how many layers it does so now."""
    max_tags: int | None = None
    """How many series of layers a chart should be given; None for all. See `esdmon.present.scalars`."""

    def __getitem__(self, name: str) -> LayerReport:
        """The layer of that name; KeyError with the nearest names."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        if name in self.waiting:
            msg = f"{name!r} has not been read yet: its turn comes as the budget allows"
            raise KeyError(msg)
        msg = f"no layer {name!r} in this report.{nearest(str(name), (layer.name for layer in self.layers))}"
        raise KeyError(msg)

    def __contains__(self, name: object) -> bool:
        """Whether there is a layer of that name."""
        return any(layer.name == name for layer in self.layers)

    def __iter__(self) -> Iterator[LayerReport]:
        """The layers, in the model's order."""
        return iter(self.layers)

    def __len__(self) -> int:
        """How many matrices."""
        return len(self.layers)

    @property
    def new(self) -> tuple[LayerReport, ...]:
        """The layers that were read at this step: what a sink has not had yet."""
        return tuple(layer for layer in self.layers if layer.step == self.step)

    @property
    def x(self) -> int:
        """Where it is drawn: the host's step, so that it lies under the host's loss; without a host, `step`."""
        return self.step if self.host_step is None else self.host_step

    @property
    def summary(self) -> dict[str, float]:
        """Return the model in a few numbers: see `esdmon.records.summary`; and what this report cost."""
        numbers = summarize(self.layers, step=self.step, waiting=self.waiting, firing=self.firing)
        return numbers | {"seconds": self.seconds, "overhead": self.overhead}

    def to_records(self) -> list[Record]:
        """A flat JSON object for each matrix."""
        return [layer.to_record() for layer in self.layers]

    def to_summary_record(self) -> Record:
        """The summary as a flat JSON object, and the layers that stand still, are frozen, unchanged, or wait."""
        steps = {"step": self.step, "host_step": self.host_step}
        lists = {
            "still": [layer.name for layer in self.layers if layer.stands_still and layer.trainable],
            "frozen": [layer.name for layer in self.layers if layer.stands_still and not layer.trainable],
            "unchanged": [layer.name for layer in self.layers if layer.unchanged],
            "waiting": list(self.waiting),
        }
        return steps | {key: jsonable(value) for key, value in self.summary.items()} | lists

    def __str__(self) -> str:
        """Return a table of 80 columns, what alpha in parentheses means, and what is not watched."""
        lines = [layer_table(self.layers), *age_lines(self.layers, step=self.step, waiting=self.waiting)]
        lines.append(f"step {self.step}, {self.coverage}" if self.step else str(self.coverage))
        return "\n".join(lines)
