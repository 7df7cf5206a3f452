"""Define `LayerReport`, the record of one matrix at one step."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from esdmon.calls import explain_wrong_calls
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
"""The reason why a weight that has not changed has no spectrum of W − W₀."""
INACTIVE = "inactive: this adapter adds nothing yet (one of its factors is zero)"
"""The reason why an adapter that has not begun to learn has no spectrum."""

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
    "learning_rate",
    "weight_decay",
    "extra",
    "unchanged",
    "dead_rows",
    "dead_columns",
    "phase",
    "phase_code",
    "phase_confidence",
    "explanation",
    "alpha_is_meaningful",
    "over_regularized",
)
"""Keys of a layer's JSON record, in order, before its measures and their nulls; each is an attribute of `LayerReport`.

What is read back from a record (`serialization.layer_from_record`) follows from this list: the keys that are fields.
"""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The spectrum of one matrix, as it was measured at one step.

    `to_record` is its JSON form; keys there are the names below.
    """

    name: str
    """Canonical name of the module, or of the parameter if that is not called `weight`; with `/part` appended where
    one parameter holds several matrices."""
    status: Status
    """`ok`, or why there are no measures: `skipped`, `degenerate` (such as all zero), `nonfinite` (NaN or infinity in
    the weight), `failed`."""
    step: int
    """Number of optimizer steps taken when the weight was read."""
    reason: str = ""
    """Explanation of a status other than `ok`; empty for `ok`."""
    kind: str = ""
    """Kind of layer by how it is read, such as `linear`, `conv2d`, `attention` or `experts`; empty if it is not known.
    Not in JSON records."""
    view: str = "weight"
    """Which matrix was read: `weight`, `base`, `lora-delta`, `merged`, `difference` from a reference, `update` since
    the last reading, `momentum` of the optimizer, `qk` or `ov`: a product of attention's projections."""
    aliases: tuple[str, ...] = ()
    """Further names of a weight that several modules share."""
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
    """Floating-point type that the eigenvalues were computed in."""
    host_step: int | None = None
    """Step by the Trainer's own count; None without a Trainer."""
    emitted_step: int | None = None
    """Step at which the record was written, if later than `step`; `to_record` writes `step` for None."""
    trainable: bool = True
    """Value of `requires_grad` of the weight; True for all of a dict in which no tensor requires a gradient."""
    in_optimizer: bool | None = None
    """True if the optimizer holds the weight; None if the monitor has no optimizer."""
    update_ratio: float = math.nan
    """‖ΔW‖/‖W‖ from the previous reading to this one, >= 0, estimated on a sample of the elements.

    At the first reading it counts from `watch()`. Infinite for a weight that was zero; NaN if there is no earlier
    value to compare with, as in `analyze()`."""
    step_ratio: float = math.nan
    """‖ΔW‖/‖W‖ of one optimizer step, >= 0, the last that was sampled before the reading; NaN if none was."""
    step_growth: float = math.nan
    """Relative change of the norm of W by that step, sampled with it; −`step_ratio` where the weight just shrinks."""
    start_ratio: float = math.nan
    """‖W − W₀‖ over the larger of ‖W‖ and ‖W₀‖, from 0 to 2, sampled with it; W₀ is the weight at `watch()`."""
    learning_rate: float = math.nan
    """Learning rate of its group in the optimizer; NaN where it is not known. Of D-Adaptation and Prodigy `lr` times
    their estimate `d`, of schedule-free optimizers what their warm-up makes of `lr`."""
    weight_decay: float = math.nan
    """Weight decay of its group in the optimizer, >= 0; NaN where the optimizer is not known or has none."""
    computed: bool = False
    """True for a weight that the module computes from its parameters, as `spectral_norm` and packed weights do."""
    drift: float = math.nan
    """‖ΔW‖/‖W‖ from this reading to the latest check of the weight, >= 0; NaN if it was not checked since. Not in JSON
    records."""
    unchanged: bool = False
    """True if the values are repeated from an earlier step since the weight has moved by at most 1e-3 of its norm."""
    extra: bool = False
    """True for a reading between the scheduled ones, since something in the layer jumped or may be wrong."""
    dead_rows: int = 0
    """Rows that were left out: all zero, or with an rms below 1e-3 of that of the median row. For a linear layer, its
    outputs."""
    dead_columns: int = 0
    """Columns that were left out for the same reason."""
    phase: Phase = Phase.UNCLASSIFIED
    """Phase of training after Martin and Mahoney; `phase_code` is its number, 0 to 5, and -1 for unclassified."""
    phase_confidence: float = 0.0
    """0 on a border between phases and if unclassified, 1 where the evidence is a factor of 1.5 or more from any."""
    explanation: str = ""
    """Evidence for the phase, in a few sentences; for an unclassified layer, why it has none."""
    alpha_is_meaningful: bool = False
    """False if alpha describes the edge of noise and not a power-law tail."""
    over_regularized: bool = False
    """True if alpha is meaningful, alpha_high + 2·alpha_stderr < 2, and the tail has left the bulk: see
    `esdmon.spectrum.phases.has_left_bulk`. Always False for what is not a weight, such as a difference."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Values of the measures by name; NaN where undefined. Units and formulas: `esdmon.spectrum.measures`."""
    nulls: Mapping[str, float] = field(default_factory=dict)
    """Values that pure noise of the same shape would give, by measure; `<measure>_null` in JSON records."""
    esd: Esd | None = None
    """Histogram of the eigenvalues and the largest ones, for pictures; not in flat records, but in some JSONL lines."""
    spectral_shape: tuple[float, ...] = ()
    """p = σ/Σσ, descending, to compare the next reading with. Not in JSON records."""
    settled: Phase | None = None
    """Phase to show where this reading is the first of another one; None to show `phase`. Not in JSON records."""

    def __post_init__(self) -> None:
        """Drop the verdict on a weight from the record of something else, whose spectrum may have the same tail."""
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
        """Phase that tables, curves and pictures show: a new one from the second reading that agrees on it."""
        return self.phase if self.settled is None else self.settled

    def settle(self, before: LayerReport | None) -> LayerReport:
        """Return this reading with the phase to show and the distance of the spectra, given the reading before it."""
        if before is None or before.status != "ok":
            return self
        settled = None if self.phase in (before.phase, before.shown_phase) else before.shown_phase
        if DISTANCE not in self.measures or not self.spectral_shape:  # a reading from a file has its distance
            return self if settled is None else replace(self, settled=settled)
        moved = distance(before.spectral_shape, self.spectral_shape)
        return replace(self, settled=settled, measures={**self.measures, DISTANCE: moved})

    @property
    def state(self) -> str:
        """Value of the phase that is shown, or a status other than ok."""
        return self.shown_phase.value if self.status == "ok" else self.status

    @property
    def is_weight(self) -> bool:
        """True for a weight, also for one with or without its adapters; False for a change of one or a product."""
        return self.view in ("weight", "base", "merged")

    @property
    def is_followed(self) -> bool:
        """True for what alert rules and summaries take: weights, differences from a reference, and adapters."""
        return self.is_weight or self.view in ("difference", "lora-delta")

    @property
    def was_read(self) -> bool:
        """True if the weight was read, even if it is zero, not finite or equal to its reference."""
        return self.status not in ("skipped", "failed") or self.reason == EQUAL

    @property
    def last_move(self) -> float:
        """Latest known ‖ΔW‖/‖W‖: since this reading, or else before it; NaN if neither is known."""
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
        """Return one flat JSON object: `RECORD_KEYS`, measures, nulls; None for what is undefined."""
        own = {key: getattr(self, key) for key in RECORD_KEYS}
        own["aliases"] = list(self.aliases)
        own["emitted_step"] = self.step if self.emitted_step is None else self.emitted_step
        own["phase"] = self.phase.value
        nulls = {f"{name}_null": value for name, value in self.nulls.items()}
        return {key: jsonable(value) for key, value in (own | dict(self.measures) | nulls).items()}

    @explain_wrong_calls
    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the spectrum on logarithmic axes, with the noise that fits its bulk and the power law of its tail.

        The power law begins at xmin, and is dashed where alpha is not meaningful. Ticks at the bottom are the largest
        eigenvalues one by one, up to 16, those too large for noise in red.

        Args:
            axes: where to draw; a new figure of pyplot if None.

        Raises:
            MissingExtraError: without matplotlib, which is optional.
            InputError: for a layer without a spectrum; a JSONL has that of every fifth reading.
        """
        return plots.plot_layer(self, axes)

    @property
    def shape_text(self) -> str:
        """Return `1024 × 384`, or `64 × 32 × 25` for pooled slices; empty if the weight could not be read."""
        return " × ".join(map(str, (self.N, self.M, self.slices)[: 3 if self.slices > 1 else 2])) if self.N else ""

    @property
    def alpha_text(self) -> str:
        """Return alpha and its standard error, `2.50 ± 0.25`, in parentheses if it is not meaningful; `–` without."""
        if not math.isfinite(self.measures.get("alpha", math.nan)):
            return "–"
        alpha = f"{show_number(self.measures, 'alpha', '.2f')} ± {show_number(self.measures, 'alpha_stderr', '.2f')}"
        return alpha if self.alpha_is_meaningful else f"({alpha})"

    def __repr__(self) -> str:
        """Return one line with the chief values."""
        if self.status != "ok":
            return f"<LayerReport {self.name}: {self.status}, step {self.step}: {self.reason}>"
        soft_rank, spikes = (show_number(self.measures, *of) for of in (("mp_soft_rank", ".2f"), ("n_spikes", ".0f")))
        return (
            f"<LayerReport {self.name}: {self.shape_text}, {self.phase.value}, alpha {self.alpha_text}, "
            f"soft rank {soft_rank}, {spikes} spikes, step {self.step}>"
        )

    def __str__(self) -> str:
        """Return the phase, the evidence for it, and a table of all measures beside those of noise, in 80 columns."""
        title = f"{self.name}, step {self.step}: {', '.join(filter(None, (self.shape_text, self._state())))}"
        lines = [title, *textwrap.wrap(self.explanation or self.reason, WIDTH)]
        rows = list(self._measure_rows())
        if rows:
            lines.append(format_table(("measure", "value", "of pure noise"), rows))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return what notebooks show."""
        colour = PHASE_HEX[self.phase] if self.status == "ok" else SEVERITY_HEX["error"]
        facts = html.faint(", ".join(filter(None, (self.shape_text, f"step {self.step}"))))
        parts = [html.paragraph(html.strong(self.name), html.badge(self._state(), colour), facts)]
        parts.append(html.paragraph(self.explanation or self.reason))
        rows = list(self._measure_rows())
        if rows:
            parts.append(html.folded(f"{len(rows)} measures", html.table(("measure", "value", "of pure noise"), rows)))
        return html.page(*parts)

    def _state(self) -> str:
        """Return the phase and how sure it is, or a status other than ok."""
        if self.status != "ok" or self.phase is Phase.UNCLASSIFIED:
            return self.status if self.status != "ok" else self.phase.value
        return f"{self.phase.value} (confidence {self.phase_confidence:.2f})"

    def _measure_rows(self) -> Iterator[list[str]]:
        """Yield name, value and the value of pure noise of each measure; alpha with its error and parentheses."""
        for name in self.measures:
            value = self.alpha_text if name == "alpha" else show_number(self.measures, name, ".4g")
            yield [name, value, show_number(self.nulls, name, ".4g") if name in self.nulls else ""]
