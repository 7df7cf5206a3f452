"""Define `Report`, the record of a model at one step, and `Coverage`, the part of the model that it covers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from esdmon.calls import explain_wrong_calls
from esdmon.encoding import printed
from esdmon.errors import InputError, as_list
from esdmon.records import html
from esdmon.records.colours import PHASE_HEX, SEVERITY_HEX
from esdmon.records.frame import to_frame
from esdmon.records.layer import LayerReport
from esdmon.records.origin import Origin
from esdmon.records.plots import MAX_PANELS, plot_layers
from esdmon.records.screened import Screened
from esdmon.records.summary import summarize
from esdmon.records.table import matches
from esdmon.records.text import (
    HEADER,
    age_lines,
    count,
    counted,
    grouped,
    layer_table,
    near_or_first,
    notes,
    row,
    short_table,
)
from esdmon.records.values import Record, jsonable
from esdmon.spectrum import Phase

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_ROWS = 20
"""Layers that `repr` of a report shows at most; `print` shows all. Our choice."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A parameter that is not watched, and why."""

    name: str
    """Canonical name of the parameter."""
    n_parameters: int
    """Number of its elements."""
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """The part of a model that is watched, counted in parameters (elements)."""

    watched: int
    """Number of parameters in the watched matrices."""
    total: int
    """Number of parameters of the model."""
    skipped: tuple[Skipped, ...] = ()
    """Parameters that are not watched, each with the reason."""
    matrices_read: int = 0
    """Number of weights with a reading; updates, momenta and products are not counted."""
    matrices_with_phase: int = 0
    """Number of weights with a reading whose phase is not unclassified."""
    parameters_read: int = 0
    """Number of parameters in the matrices with a reading; a parameter in two matrices counts twice."""
    parameters_with_phase: int = 0
    """Number of parameters in the matrices with a phase."""

    def of(self, layers: Iterable[LayerReport]) -> Coverage:
        """Return this coverage with the counts of layers with a reading, and of layers with a phase."""
        read = [layer for layer in layers if layer.status == "ok" and layer.is_followed]
        phased = [layer for layer in read if layer.phase is not Phase.UNCLASSIFIED]
        return replace(
            self,
            matrices_read=len(read),
            matrices_with_phase=len(phased),
            parameters_read=sum(layer.n_parameters for layer in read),
            parameters_with_phase=sum(layer.n_parameters for layer in phased),
        )

    @property
    def share(self) -> float:
        """Return watched/total, in [0, 1]; 0 for a model without parameters."""
        return self.watched / self.total if self.total else 0.0

    def __str__(self) -> str:
        """Return the lines, with other characters where standard output cannot encode them."""
        return printed("\n".join(self.lines))

    def __repr__(self) -> str:
        """Return the watched share, and how many matrices have a phase."""
        return f"<Coverage: {', '.join(line.strip() for line in self.lines[: 1 + len(self._phased())])}>"

    @property
    def lines(self) -> list[str]:
        """Return a line with the watched share, one on phases, and one for each reason why parameters are skipped."""
        lines = [f"watching {self.share:.1%} of {self.total:,} parameters", *self._phased()]
        skipped = ((skip.reason, skip.name) for skip in self.skipped)
        return [*lines, *grouped(skipped, "  not watched: {names} ({reason})")]

    def _phased(self) -> list[str]:
        if not self.parameters_read:
            return []
        share = self.parameters_with_phase / self.parameters_read
        return [
            f"  {self.matrices_with_phase} of {self.matrices_read} matrices have a phase: {share:.1%} by parameters"
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """The latest readings of all layers of a model at one step. `print(report)` shows a table, `report["fc"]` a layer.

    A layer that was not read at this step appears with its latest reading. `step` of the layer is the step of this
    reading, and `age` the number of steps since then.
    """

    step: int
    """Number of optimizer steps taken."""
    layers: tuple[LayerReport, ...]
    """The latest reading of each matrix that was read so far, in the model's order."""
    coverage: Coverage
    """The part of the model that is watched."""
    seconds: float = math.nan
    """Time that the readings of this step took, in seconds."""
    waiting: tuple[str, ...] = ()
    """Names of matrices that were not read yet because of the budget."""
    overhead: float = math.nan
    """Share of the run's time that the monitor has used so far, >= 0."""
    host_step: int | None = None
    """Step in the Trainer's own count; None without a Trainer."""
    firing: Mapping[str, int] = field(default_factory=dict)
    """For each alert rule that has fired in the run, the number of layers in which it fires now."""
    screened: tuple[Screened, ...] = ()
    """The latest norms of each matrix that was screened after its last reading, or before its first."""
    extra: bool = False
    """True for a report between the scheduled ones, of layers in which something may be wrong."""
    max_tags: int | None = None
    """Largest number of series of layers that a tracker should get; None for no limit. See `esdmon.present.scalars`."""
    origins: tuple[Origin, ...] = ()
    """Files of the checkpoint that was read, and of the one with W₀; empty for a model in memory, or a run."""

    def __post_init__(self) -> None:
        """Count the layers with a phase in the coverage."""
        object.__setattr__(self, "coverage", self.coverage.of(self.layers))

    def __getitem__(self, name: str) -> LayerReport:
        """Return the layer of that name.

        Raises:
            KeyError: for an unknown name, with similar known names; and for a layer that was not read yet.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        if name in self.waiting:
            msg = f"{name!r} was not read yet: it waits for the budget. Raise budget=, or train on."
            raise KeyError(msg)
        msg = f"unknown layer {name!r}.{near_or_first(name, (layer.name for layer in self.layers))}"
        raise KeyError(msg)

    def __contains__(self, name: object) -> bool:
        """Return True if there is a layer of that name."""
        return any(layer.name == name for layer in self.layers)

    def __iter__(self) -> Iterator[LayerReport]:
        """Iterate over the layers, in the model's order."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    @property
    def new(self) -> tuple[LayerReport, ...]:
        """Return the layers that were read at this step: those that no sink has seen yet."""
        return tuple(layer for layer in self.layers if layer.step == self.step)

    @property
    def x(self) -> int:
        """Return the x-coordinate in charts: `host_step`, as for the Trainer's loss; without a Trainer, `step`."""
        return self.step if self.host_step is None else self.host_step

    @property
    def summary(self) -> dict[str, float]:
        """Return the numbers of `esdmon.records.summary`, and `seconds` and `overhead`."""
        numbers = summarize(self.layers, step=self.step, waiting=self.waiting, firing=self.firing)
        if self.screened:
            numbers["layers_screened"] = float(sum(each.is_new for each in self.screened))
        return numbers | {"seconds": self.seconds, "overhead": self.overhead}

    def to_records(self) -> list[Record]:
        """Return one flat JSON object for each layer."""
        return [layer.to_record() for layer in self.layers]

    def to_dataframe(self) -> pd.DataFrame:
        """Return a table of pandas with a row for each layer and the columns of `to_records`.

        Raises:
            MissingExtraError: without pandas, which is optional.
        """
        return to_frame(self.to_records())

    @explain_wrong_calls
    def plot(self, layers: Sequence[str] = ("*",)) -> Figure:
        """Draw the spectra of layers, each as `LayerReport.plot` does; at most 24, spread over the depth of the model.

        Args:
            layers: fnmatch patterns on names.

        Raises:
            MissingExtraError: without matplotlib, which is optional.
            InputError: if no layer has such a name, or none of these has a spectrum. A JSONL has the spectrum of every
                fifth reading.
        """
        patterns = as_list("layers", layers, "patterns")
        named = [layer for layer in self.layers if any(matches(layer.name, pattern) for pattern in patterns)]
        if self.layers and not named:
            known = near_or_first(patterns[0] if patterns else "", (layer.name for layer in self.layers))
            raise InputError(f"layers={layers!r} matches no layer.{known}")
        drawn = [layer for layer in named if layer.esd is not None]
        if len(drawn) > MAX_PANELS:
            drawn = [drawn[k * (len(drawn) - 1) // (MAX_PANELS - 1)] for k in range(MAX_PANELS)]
        return plot_layers(drawn, total=len(named))

    def to_summary_record(self) -> Record:
        """Return a JSON object of the summary, and of the names of layers: still, frozen, unchanged or waiting."""
        steps = {"step": self.step, "host_step": self.host_step}
        lists = {
            "still": [layer.name for layer in self.layers if layer.stands_still and layer.trainable],
            "frozen": [layer.name for layer in self.layers if layer.stands_still and not layer.trainable],
            "unchanged": [layer.name for layer in self.layers if layer.unchanged],
            "waiting": list(self.waiting),
            "extra": self.extra,
        }
        return steps | {key: jsonable(value) for key, value in self.summary.items()} | lists

    def __str__(self) -> str:
        """Return `text`, with other characters where standard output cannot encode them, such as x for ×."""
        return printed(self.text)

    @property
    def text(self) -> str:
        """Return a table of 80 columns, notes on it, and the parameters that are not watched."""
        lines = [*self.origin_lines, layer_table(self.layers)]
        lines += age_lines(self.layers, step=self.step, waiting=self.waiting, extra=self.extra)
        if self._has_coverage:
            first, *others = self.coverage.lines
            lines += [f"step {self.step}, {first}" if self.step else first, *others]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return the counts of phases and the table; for a large model only its first and last rows."""
        lines = [*self.origin_lines, self._headline(), short_table(self.layers, most=MAX_ROWS)]
        if len(self) > MAX_ROWS:
            lines.append("print(report) shows all layers, report.to_dataframe() all measures")
        return printed("\n".join(lines))

    def _repr_html_(self) -> str:
        """Return HTML for notebooks."""
        rows = [self._html_row(layer) for layer in self.layers]
        lines = [*self.origin_lines, *notes(self.layers)]
        lines += age_lines(self.layers, step=self.step, waiting=self.waiting, extra=self.extra)
        lines += self.coverage.lines if self._has_coverage else []
        return html.page(
            html.paragraph(html.strong(self._headline())),
            html.table(HEADER, rows, left=(0, 2)),
            *(html.paragraph(html.faint(line)) for line in lines),
        )

    @property
    def origin_lines(self) -> list[str]:
        """Return lines on the files that were read and, in the same folder, not read; see `Origin.lines`."""
        return [line for origin in self.origins for line in origin.lines]

    @property
    def _has_coverage(self) -> bool:
        """Return False for a report from a JSONL, which does not contain the coverage."""
        return bool(self.coverage.total) or not self.layers

    def _headline(self) -> str:
        step = f"step {self.step}, " if self.step else ""
        return f"{step}{count(len(self), 'layer')}: {counted(self.layers)}" if self.layers else f"{step}no layers"

    @staticmethod
    def _html_row(layer: LayerReport) -> list[str]:
        name, shape, phase, alpha, *others = row(layer)
        colour = PHASE_HEX[layer.shown_phase] if layer.status == "ok" else SEVERITY_HEX["error"]
        shown = alpha if layer.alpha_is_meaningful else html.faint(alpha)
        return [html.strong(name), shape, html.badge(phase, colour), shown, *others]
