"""Format the text of a report: its table, and the lines below it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from esdmon.errors import nearest, printable
from esdmon.records.layer import LayerReport
from esdmon.records.table import format_table
from esdmon.records.values import show_number
from esdmon.spectrum import Phase

HEADER = ("layer", "N × M", "phase", "alpha", "soft rank", "spikes")
"""Titles of the columns of a report's table."""


def layer_table(layers: Sequence[LayerReport]) -> str:
    """Return a table of 80 columns, and lines on layers that are not ok, are unclassified, or look like noise."""
    return "\n".join([_table(layers), *notes(layers)])


def notes(layers: Sequence[LayerReport]) -> list[str]:
    """Return lines on layers that are not ok, are unclassified, or look like noise."""
    return [*layer_notes(layers), *alpha_note(layers)]


def layer_notes(layers: Sequence[LayerReport]) -> list[str]:
    """Return lines on layers that are not ok, or unclassified."""
    ok = [layer for layer in layers if layer.status == "ok"]
    unclassified = ((layer.explanation, layer.name) for layer in ok if layer.shown_phase is Phase.UNCLASSIFIED)
    return [*grouped((layer.reason, layer.name) for layer in layers if layer.status != "ok"), *grouped(unclassified)]


def alpha_note(layers: Sequence[LayerReport]) -> list[str]:
    """Return a line that explains parentheses around alpha, if a table has any."""
    if not any(layer.alpha_text.startswith("(") for layer in layers if layer.status == "ok"):
        return []
    return ["(alpha) in parentheses: no power-law tail that can be distinguished from noise"]


def short_table(layers: Sequence[LayerReport], *, most: int) -> str:
    """Return the table without notes; of more than `most` layers, only the first and last rows."""
    if len(layers) <= most:
        return _table(layers)
    ends = [*layers[: most // 2], *layers[-(most // 2) :]]
    lines = _table(ends).splitlines()
    lines.insert(1 + most // 2, f"… {len(layers) - len(ends)} more layers")
    return "\n".join(lines)


def _table(layers: Sequence[LayerReport]) -> str:
    return format_table(HEADER, [row(layer) for layer in layers], left=(0, 2))


def counted(layers: Iterable[LayerReport]) -> str:
    """Return how many layers are in each phase, or have a status other than ok: `3 bulk+spikes, 1 failed`."""
    names = Counter(layer.state for layer in layers)
    return ", ".join(f"{number} {name}" for name, number in names.most_common())


def age_lines(layers: Sequence[LayerReport], *, step: int, waiting: Sequence[str], extra: bool = False) -> list[str]:
    """Return a line on readings from before `step`, and one on matrices that were not read yet.

    Args:
        layers: those of a report.
        step: the step of the report.
        waiting: matrices that were not read yet.
        extra: the report is of a step between scheduled ones, at which only a few layers are due.
    """
    old = [layer for layer in layers if layer.step != step]
    lines = []
    if old:
        oldest = min(layer.step for layer in old)
        moved = [layer for layer in old if not layer.unchanged]
        empty = sum(layer.status != "ok" and math.isnan(layer.drift) for layer in moved)
        reasons = {
            "unchanged since then": len(old) - len(moved),
            "still without a spectrum": empty,
            "not due at this extra step" if extra else "postponed by budget=": len(moved) - empty,
        }
        given = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
        lines.append(f"{len(old)} of {len(layers)} read earlier, the oldest at step {oldest}: {given}")
    if waiting:
        lines.append(f"not read yet: {named(waiting, most=2)}")
    return lines


def named(names: Iterable[str], *, most: int = 3) -> str:
    """Return `a, b, c and 4 more`; a single one more is named."""
    shown = list(names)
    if len(shown) <= most + 1:
        return ", ".join(shown)
    return f"{', '.join(shown[:most])} and {len(shown) - most} more"


def near_or_first(got: object, known: Iterable[str]) -> str:
    """Return a hint for a wrong name: the most similar known names, else the first: ` The layers are: a, b …`."""
    names = list(known)
    return nearest(str(got), names) or (f" The layers are: {named(names, most=8)}." if names else " There are none.")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 layer`, `2 layers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def grouped(reasons: Iterable[tuple[str, str]], form: str = "{names}: {reason}") -> list[str]:
    """Return a line `name, name and 3 more: reason`, or of another form, for each reason, from pairs (reason, name)."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in reasons:
        by_reason.setdefault(reason, []).append(name)
    lines = (form.format(names=named(names, most=2), reason=reason) for reason, names in by_reason.items())
    return [printable(line) for line in lines]


def show(layer: LayerReport, measure: str, form: str) -> str:
    """Return a measure in a format such as `.2f`; a dash if it is undefined or was not computed."""
    return show_number(layer.measures, measure, form)


def cell_of_alpha(layer: LayerReport) -> str:
    """Return alpha and its standard error, so that the numbers of a column stand below each other."""
    return f" {layer.alpha_text} " if layer.alpha_is_meaningful else layer.alpha_text


def row(layer: LayerReport) -> list[str]:
    """Return the cells of a layer, one for each title of `HEADER`."""
    if layer.status != "ok":
        return [layer.name, layer.shape_text, layer.status, "", "", ""]
    return [
        layer.name,
        layer.shape_text,
        layer.shown_phase.value,
        cell_of_alpha(layer),
        show(layer, "mp_soft_rank", ".2f"),
        show(layer, "n_spikes", ".0f"),
    ]
