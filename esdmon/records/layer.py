"""Define `LayerReport`, the record of one matrix at one step."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from esdmon.calls import explain_wrong_calls
from esdmon.encoding import printed
from esdmon.records import html, plots
from esdmon.records.colours import PHASE_HEX, SEVERITY_HEX
from esdmon.records.esd import Esd
from esdmon.records.table import WIDTH, format_table
from esdmon.records.values import Record, jsonable, show_number
from esdmon.spectrum import Phase
from esdmon.spectrum.zhang2026 import DISTANCE, distance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Status: TypeAlias = Literal["ok", "skipped", "degenerate", "nonfinite", "failed"]

MOVED = 1e-6
"""‖ΔW‖/‖W‖ above which a weight counts as moved: ten times the rounding error of float32. Our choice."""

EQUAL = "equal to the reference"
"""Reason of a layer without a spectrum of W − W₀ because the weight has not changed."""
INACTIVE = "inactive: this adapter adds nothing yet (one of its factors is zero)"
"""Reason of an adapter without a spectrum because it has not begun to learn."""

RECORD_KEYS = (
    "name",
    "status",
    "reason",
    "view",
    "aliases",
    "computed",
    "N",
    "M",
    "Q",
    "slices",
    "n_eigenvalues",
    "n_parameters",
    "dtype",
    "precision",
    "step",
    "host_step",
    "emitted_step",
    "age",
    "trainable",
    "in_optimizer",
    "update_ratio",
    "step_ratio",
    "step_growth",
    "start_ratio",
    "zero_gradient",
    "learning_rate",
    "weight_decay",
    "extra",
    "unchanged",
    "dead_rows",
    "dead_columns",
    "dead_slices",
    "phase",
    "phase_code",
    "phase_confidence",
    "explanation",
    "alpha_is_meaningful",
    "over_regularized",
)
"""Keys of a layer's JSON record, in order, before its measures and their nulls; each is an attribute of `LayerReport`.

`serialization.layer_from_record` restores the keys that are fields; the others are computed.
"""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The spectrum of one matrix at one step. `to_record` returns it as JSON, with the names below as keys."""

    name: str
    """Canonical name of the module; name of the parameter if it is not called `weight`. If one parameter holds several
    matrices, `/part` is appended."""
    status: Status
    """`ok`, or the reason why there are no measures: `skipped`, `degenerate` (such as all zero), `nonfinite` (NaN or
    infinity in the weight), `failed`."""
    step: int
    """Number of optimizer steps taken when the weight was read."""
    reason: str = ""
    """Explanation of a status other than `ok`; empty for `ok`."""
    kind: str = ""
    """Kind of layer, such as `linear`, `conv2d`, `attention` or `experts`; empty if it is not known. Not in JSON
    records."""
    view: str = "weight"
    """The matrix that was read: `weight`, `base`, `lora-delta`, `merged`, `difference` from a reference, `update` since
    the last reading, `momentum` of the optimizer, or `qk` or `ov`, products of projections of attention."""
    aliases: tuple[str, ...] = ()
    """Other names of a weight that several modules share."""
    N: int = 0
    """Longer side of the matrix, without dead rows and columns; 0 if it could not be read."""
    M: int = 0
    """Shorter side of the matrix, without dead rows and columns; M <= N."""
    slices: int = 1
    """Number of N × M matrices whose eigenvalues are pooled, such as the kernel positions of a convolution."""
    n_parameters: int = 0
    """Number of elements of the weight, dead rows and columns included."""
    dtype: str = ""
    """Type of the weight's elements, such as `bfloat16`."""
    precision: str = ""
    """Floating-point type in which the eigenvalues were computed."""
    host_step: int | None = None
    """Step in the Trainer's own count; None without a Trainer."""
    emitted_step: int | None = None
    """Step at which the record was written, if later than `step`, else None; `to_record` then writes `step`."""
    trainable: bool = True
    """Value of `requires_grad` of the weight; True for each tensor of a dict in which none requires a gradient."""
    in_optimizer: bool | None = None
    """True if the optimizer holds the weight; None if the monitor has no optimizer."""
    update_ratio: float = math.nan
    """‖ΔW‖/‖W‖ from the previous reading to this one, >= 0, estimated on a sample of the elements.

    At the first reading it is measured from the weight at `watch()`. Infinite for a weight that was zero; NaN without
    an earlier value, as in `analyze()`."""
    step_ratio: float = math.nan
    """‖ΔW‖/‖W‖ of the last optimizer step that was sampled before the reading, >= 0; NaN if none was sampled."""
    step_growth: float = math.nan
    """Relative change of ‖W‖ at the sampled step of `step_ratio`; −`step_ratio` if the weight only shrinks."""
    start_ratio: float = math.nan
    """‖W − W₀‖ over the larger of ‖W‖ and ‖W₀‖ at the same sampled step, 0 to 2; W₀ is the weight at `watch()`."""
    zero_gradient: float = math.nan
    """Share of the gradient's sampled elements that were exactly zero at the same step; NaN if it is not known."""
    learning_rate: float = math.nan
    """Learning rate of the weight's parameter group; NaN if it is not known. For D-Adaptation and Prodigy it is `lr`
    times their estimate `d`; for schedule-free optimizers it is `lr` after their warm-up factor."""
    weight_decay: float = math.nan
    """Weight decay of the weight's parameter group, >= 0; NaN if the optimizer is not known or has none."""
    computed: bool = False
    """True if the module computes the weight from its parameters, as for `spectral_norm` and packed weights."""
    drift: float = math.nan
    """‖ΔW‖/‖W‖ from this reading to the latest check of the weight, >= 0; NaN before the first check. Not in JSON
    records."""
    unchanged: bool = False
    """True if the values are repeated from an earlier step, as the weight has moved by at most 1e-3 of its norm."""
    extra: bool = False
    """True for a reading between the scheduled ones, made because a value of the layer jumped or may be wrong."""
    dead_rows: int = 0
    """Number of rows that were left out: all zero, or with an rms below 1e-3 of the median row's. Rows of a linear
    layer are its outputs."""
    dead_columns: int = 0
    """Number of columns that were left out for the same reason."""
    dead_slices: int = 0
    """Number of slices that were left out for the same reason, such as the kernel positions under a mask."""
    phase: Phase = Phase.UNCLASSIFIED
    """Phase of training after Martin and Mahoney; `phase_code` is its number, 0 to 5, and -1 for unclassified."""
    phase_confidence: float = 0.0
    """0 on a border between phases or if unclassified, 1 if the evidence is a factor of 1.5 or more from any border."""
    explanation: str = ""
    """Evidence for the phase, in a few sentences; for an unclassified layer, the reason why it has no phase."""
    alpha_is_meaningful: bool = False
    """True if alpha describes a power-law tail; False if it describes the edge of noise."""
    over_regularized: bool = False
    """True if alpha is meaningful, alpha_high + 2·alpha_stderr < 2, and the tail has left the bulk: see
    `esdmon.spectrum.PhaseReading`. Always False for a matrix that is not a weight, such as a difference."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Values of the measures by name; NaN where undefined. Units and formulas: `esdmon.spectrum.measures`."""
    nulls: Mapping[str, float] = field(default_factory=dict)
    """Values that pure noise of the same shape would give, by measure; `<measure>_null` in JSON records."""
    esd: Esd | None = None
    """Histogram of the eigenvalues and the largest ones, for pictures; not in flat records, but in some JSONL lines."""
    spectral_shape: tuple[float, ...] = ()
    """p = σ/Σσ, descending, for the comparison with the next reading. Not in JSON records."""
    settled: Phase | None = None
    """Phase to show if `phase` is new at this reading and not yet confirmed, else None. Not in JSON records."""

    def __post_init__(self) -> None:
        """Set `over_regularized` to False for a matrix that is not a weight; it may have the same kind of tail."""
        if self.over_regularized and not self.is_weight:
            object.__setattr__(self, "over_regularized", False)

    @property
    def Q(self) -> float:  # noqa: N802 -- the field's letter
        """Aspect ratio N/M >= 1; NaN if the weight could not be read."""
        return self.N / self.M if self.M else math.nan

    @property
    def n_eigenvalues(self) -> int:
        """Number of eigenvalues: M for each slice."""
        return self.M * self.slices

    @property
    def phase_code(self) -> int:
        """Number of the phase: 0 to 5, and -1 for unclassified."""
        return self.phase.code

    @property
    def shown_phase(self) -> Phase:
        """Phase in tables, curves and pictures; it changes only after two readings in a row have the new phase."""
        return self.phase if self.settled is None else self.settled

    def settle(self, before: LayerReport | None) -> LayerReport:
        """Return this reading with `settled` and the spectral distance set, given the previous reading."""
        if before is None or before.status != "ok":
            return self
        settled = None if self.phase in (before.phase, before.shown_phase) else before.shown_phase
        if DISTANCE not in self.measures or not self.spectral_shape:  # a reading from a file has its distance
            return self if settled is None else replace(self, settled=settled)
        moved = distance(before.spectral_shape, self.spectral_shape)
        return replace(self, settled=settled, measures={**self.measures, DISTANCE: moved})

    @property
    def state(self) -> str:
        """Name of the shown phase if the status is ok, else the status."""
        return self.shown_phase.value if self.status == "ok" else self.status

    @property
    def is_weight(self) -> bool:
        """True for a weight, with or without its adapters; False for a difference, an update or a product."""
        return self.view in ("weight", "base", "merged")

    @property
    def is_followed(self) -> bool:
        """True for the matrices of alert rules and summaries: weights, differences from a reference, and adapters."""
        return self.is_weight or self.view in ("difference", "lora-delta")

    @property
    def was_read(self) -> bool:
        """True if the weight was read, even if it is zero, not finite or equal to its reference."""
        return self.status not in ("skipped", "failed") or self.reason == EQUAL

    @property
    def last_move(self) -> float:
        """Latest known ‖ΔW‖/‖W‖: `drift`, or else `update_ratio`; NaN if neither is known."""
        return self.update_ratio if math.isnan(self.drift) else self.drift

    @property
    def stands_still(self) -> bool:
        """True if the optimizer holds the weight, but its last move is at most `MOVED`."""
        return self.status == "ok" and bool(self.in_optimizer) and self.last_move <= MOVED

    @property
    def age(self) -> int:
        """Steps from the reading to the writing of the record."""
        return 0 if self.emitted_step is None else self.emitted_step - self.step

    def to_record(self) -> Record:
        """Return one flat JSON object: `RECORD_KEYS`, measures, nulls. Undefined values are None."""
        own = {key: getattr(self, key) for key in RECORD_KEYS}
        own["aliases"] = list(self.aliases)
        own["emitted_step"] = self.step if self.emitted_step is None else self.emitted_step
        own["phase"] = self.phase.value
        nulls = {f"{name}_null": value for name, value in self.nulls.items()}
        return {key: jsonable(value) for key, value in (own | dict(self.measures) | nulls).items()}

    @explain_wrong_calls
    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the spectrum on logarithmic axes, with the law of noise of its bulk and the power law of its tail.

        The power law begins at xmin, and is dashed if alpha is not meaningful. Ticks at the bottom mark the 16 largest
        eigenvalues; those too large for noise are red.

        Args:
            axes: axes of matplotlib to draw on; None for a new figure of pyplot.

        Raises:
            MissingExtraError: without matplotlib, which is optional.
            InputError: for a layer without a spectrum. A JSONL has the spectrum of every fifth reading.
        """
        return plots.plot_layer(self, axes)

    @property
    def shape_text(self) -> str:
        """Return `1024 × 384`, or `64 × 32 × 25` for pooled slices; empty if the weight could not be read."""
        return " × ".join(map(str, (self.N, self.M, self.slices)[: 3 if self.slices > 1 else 2])) if self.N else ""

    @property
    def alpha_text(self) -> str:
        """Return alpha and its standard error, `2.50 ± 0.25`, in parentheses if not meaningful; `–` if undefined."""
        if not math.isfinite(self.measures.get("alpha", math.nan)):
            return "–"
        alpha = f"{show_number(self.measures, 'alpha', '.2f')} ± {show_number(self.measures, 'alpha_stderr', '.2f')}"
        return alpha if self.alpha_is_meaningful else f"({alpha})"

    def __repr__(self) -> str:
        """Return one line with the main values."""
        if self.status != "ok":
            return printed(f"<LayerReport {self.name}: {self.status}, step {self.step}: {self.reason}>")
        soft_rank, spikes = (show_number(self.measures, *of) for of in (("mp_soft_rank", ".2f"), ("n_spikes", ".0f")))
        return printed(
            f"<LayerReport {self.name}: {self.shape_text}, {self.phase.value}, alpha {self.alpha_text}, "
            f"soft rank {soft_rank}, {spikes} spikes, step {self.step}>"
        )

    def __str__(self) -> str:
        """Return the phase, the evidence for it, and a table of all measures and their nulls, in 80 columns."""
        title = f"{self.name}, step {self.step}: {', '.join(filter(None, (self.shape_text, self._state())))}"
        lines = [title, *textwrap.wrap(self.explanation or self.reason, WIDTH)]
        rows = list(self._measure_rows())
        if rows:
            lines.append(format_table(("measure", "value", "of pure noise"), rows))
        return printed("\n".join(lines))

    def _repr_html_(self) -> str:
        """Return HTML for notebooks."""
        colour = PHASE_HEX[self.phase] if self.status == "ok" else SEVERITY_HEX["error"]
        facts = html.faint(", ".join(filter(None, (self.shape_text, f"step {self.step}"))))
        parts = [html.paragraph(html.strong(self.name), html.badge(self._state(), colour), facts)]
        parts.append(html.paragraph(self.explanation or self.reason))
        rows = list(self._measure_rows())
        if rows:
            parts.append(html.folded(f"{len(rows)} measures", html.table(("measure", "value", "of pure noise"), rows)))
        return html.page(*parts)

    def _state(self) -> str:
        """Return the phase and its confidence if the status is ok, else the status."""
        if self.status != "ok":
            return self.status
        confidence = "" if self.phase is Phase.UNCLASSIFIED else f" (confidence {self.phase_confidence:.2f})"
        return f"{self.phase.value}{confidence}"

    def _measure_rows(self) -> Iterator[list[str]]:
        """Yield name, value and the value of pure noise of each measure; alpha with its error and parentheses."""
        for name in self.measures:
            value = self.alpha_text if name == "alpha" else show_number(self.measures, name, ".4g")
            yield [name, value, show_number(self.nulls, name, ".4g") if name in self.nulls else ""]
