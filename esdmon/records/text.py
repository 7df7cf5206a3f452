"""The text of a report: its table, and the lines below it."""

from collections import Counter
from collections.abc import Iterable, Sequence

from esdmon.records.layer import LayerReport
from esdmon.records.table import format_table
from esdmon.records.values import show_number
from esdmon.spectrum import Phase

HEADER = ("layer", "N × M", "phase", "alpha", "soft rank", "spikes")
"""Titles of the columns of a report's table."""


def layer_table(layers: Sequence[LayerReport]) -> str:
    """Return a table of 80 columns, and lines on layers that are not ok, are unclassified, or look like noise."""
    return "\n".join([format_table(HEADER, [row(layer) for layer in layers], left=(0, 2)), *notes(layers)])


def notes(layers: Sequence[LayerReport]) -> list[str]:
    """Return lines on layers that are not ok, are unclassified, or look like noise."""
    lines = [f"{layer.name}: {layer.reason}" for layer in layers if layer.status != "ok"]
    ok = [layer for layer in layers if layer.status == "ok"]
    lines += grouped((layer.explanation, layer.name) for layer in ok if layer.shown_phase is Phase.UNCLASSIFIED)
    if any(not layer.alpha_is_meaningful for layer in ok):
        lines.append("(alpha) in parentheses: no power-law tail that can be distinguished from noise")
    return lines


def short_table(layers: Sequence[LayerReport], *, most: int) -> str:
    """Return the table without notes, of more than `most` layers the first and the last."""
    if len(layers) <= most:
        return format_table(HEADER, [row(layer) for layer in layers], left=(0, 2))
    ends = [*layers[: most // 2], *layers[-(most // 2) :]]
    lines = format_table(HEADER, [row(layer) for layer in ends], left=(0, 2)).splitlines()
    lines.insert(1 + most // 2, f"… {len(layers) - len(ends)} more layers")
    return "\n".join(lines)


def counted(layers: Iterable[LayerReport]) -> str:
    """Return how many layers are in each phase, or have a status other than ok: `3 bulk+spikes, 1 failed`."""
    names = Counter(layer.shown_phase.value if layer.status == "ok" else layer.status for layer in layers)
    return ", ".join(f"{number} {name}" for name, number in names.most_common())


def age_lines(layers: Sequence[LayerReport], *, step: int, waiting: Sequence[str]) -> list[str]:
    """Return a line on readings from before `step`, and one on matrices that were not read yet."""
    old = [layer for layer in layers if layer.step != step]
    lines = []
    if old:
        oldest = min(layer.step for layer in old)
        unchanged = sum(layer.unchanged for layer in old)
        reasons = [f"{unchanged} unchanged since then"] if unchanged else []
        reasons += [f"{len(old) - unchanged} postponed by budget="] if len(old) > unchanged else []
        lines.append(f"{len(old)} of {len(layers)} read earlier, the oldest at step {oldest}: {', '.join(reasons)}")
    if waiting:
        more = f" and {len(waiting) - 2} more" if len(waiting) > 2 else ""
        lines.append(f"not read yet: {', '.join(waiting[:2])}{more}")
    return lines


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 layer`, `2 layers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def grouped(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line `name, name and 3 more: reason` for each reason, from pairs (reason, name)."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in reasons:
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {reason}"
        for reason, names in by_reason.items()
    ]


def show(layer: LayerReport, measure: str, form: str) -> str:
    """Return a measure in a format such as `.2f`; a dash if it is undefined or was not computed."""
    return show_number(layer.measures, measure, form)


def row(layer: LayerReport) -> list[str]:
    """Return the cells of a layer, one for each title of `HEADER`."""
    if layer.status != "ok":
        return [layer.name, layer.shape_text, layer.status, "", "", ""]
    return [
        layer.name,
        layer.shape_text,
        layer.shown_phase.value,
        f" {layer.alpha_text} " if layer.alpha_is_meaningful else layer.alpha_text,
        show(layer, "mp_soft_rank", ".2f"),
        show(layer, "n_spikes", ".0f"),
    ]
