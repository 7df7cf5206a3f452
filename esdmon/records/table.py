"""Format plain-text tables that fit a terminal of 80 columns."""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from esdmon.errors import printable

WIDTH = 80
_GAP = "  "
_NUMBER = re.compile(r"([0-9]{1,18})")  # longer ones are not indices, and Python rejects very long ones
_SEPARATOR = re.compile(r"[./]")
_LEAST_END = 4  # characters of a name's end that are shown after the differing part
_LONGEST_PART = 4  # characters of a differing part, if whole parts do not fit
_LONG_NAME = 20  # characters; common leading parts are removed if a name is longer


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), width: int | None = WIDTH
) -> str:
    """Return a table with aligned columns, the first one shortened until the table fits `width`.

    Line breaks and control characters in a cell are written as escape sequences.

    Args:
        header: a title for each column.
        rows: a cell for each column.
        left: numbers of the columns that are aligned to the left; the others are aligned to the right.
        width: characters in a line; None shortens nothing.

    >>> print(format_table(["layer", "alpha"], [["encoder.layers.0.weight", "2.31"]], width=20))
    layer          alpha
    enco…0.weight   2.31
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    _, *others = _widths([header, *rows])
    if width is not None:
        room = max(width - sum(others) - len(_GAP) * len(others), len(header[0]), 8)
        names = shorten_all(without_common_prefix([row[0] for row in rows]), room)
        rows = [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]
    widths = _widths([header, *rows])
    return "\n".join(_line(row, widths, left) for row in (header, *rows))


def matches(name: str, pattern: str) -> bool:
    """Return whether a name is the pattern itself, as `blocks[0].w` may be, or matches it as an fnmatch pattern.

    >>> [matches("blocks[0].w", pattern) for pattern in ("blocks[0].w", "blocks*", "blocks?0].w", "blocks[1].w")]
    [True, True, True, False]
    """
    return name == pattern or fnmatchcase(name, pattern)


def natural_key(name: str) -> tuple[int | str, ...]:
    """Return a key that sorts names with their numbers as numbers: `layers.2` before `layers.10`."""
    return tuple(int(part) if place % 2 else part for place, part in enumerate(_NUMBER.split(name)))


def without_common_prefix(names: Sequence[str]) -> Sequence[str]:
    """Return long names without their common leading parts, so that the parts that differ stay visible.

    Parts from a number on are kept, since it is that of the block: a report may have layers of one block only.

    >>> without_common_prefix(["transformer.h.5.attn.c_attn", "transformer.h.5.attn.c_proj"])
    ['…5.attn.c_attn', '…5.attn.c_proj']
    """
    if len(names) < 2 or max(map(len, names)) <= _LONG_NAME:
        return names
    parts = [name.split(".")[:-1] for name in names]
    common = itertools.takewhile(lambda part: not part.isdecimal(), _shared(parts))
    start = sum(len(part) + 1 for part in common)
    return ["…" + name[start:] for name in names] if start else names


def shorten(text: str, width: int) -> str:
    """Return a text, with `…` in place of its middle if it is too long: names of layers differ at both ends.

    >>> shorten("transformer.h.11.mlp.c_fc", 12)
    'tra…mlp.c_fc'
    """
    if len(text) <= width:
        return text
    tail = width * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def shorten_all(names: Sequence[str], width: int) -> list[str]:
    """Return names shortened as by `shorten`; names that would look the same keep the parts in which they differ.

    Names with the same number of parts and the same last part are shortened in the same way, so that a table has one
    form of name for each kind of layer.

    >>> shorten_all(["encoder.layer.0.attention.query", "encoder.layer.1.attention.query"], 16)
    ['…0…tention.query', '…1…tention.query']
    """
    short = {name: shorten(name, width) for name in names}
    kin = _kin(short)
    tried: set[frozenset[str]] = set()
    while alike := _alike(short, tried):
        tried.add(alike)
        together = set[str]().union(*(kin[name] for name in alike))
        kin |= dict.fromkeys(together, together)
        fitting = _apart([name for name in short if name in together], width)
        if len(fitting) < len(together):
            fitting = _apart([name for name in short if name in alike], width)
        short |= fitting
    return [short[name] for name in names]


def _kin(names: Iterable[str]) -> dict[str, set[str]]:
    """Return for each name the names with the same number of parts and the same last part."""
    found: dict[tuple[int, str], set[str]] = {}
    for name in names:
        parts = _SEPARATOR.split(name)
        found.setdefault((len(parts), parts[-1]), set()).add(name)
    return {name: group for group in found.values() for name in group}


def _alike(short: Mapping[str, str], tried: Collection[frozenset[str]]) -> frozenset[str]:
    """Return names that look the same after shortening and were not tried yet; empty if there are none."""
    found: dict[str, set[str]] = {}
    for name, text in short.items():
        found.setdefault(text, set()).add(name)
    groups = (frozenset(names) for names in found.values() if len(names) > 1)
    return next((names for names in groups if names not in tried), frozenset())


def _apart(names: Sequence[str], width: int) -> dict[str, str]:
    """Return names shortened to their ends, or to the differing parts and their ends; only results that fit.

    If not all of them fit, the parts are cut to a few characters, as long as they still differ.
    """
    ends = {name: name if len(name) <= width else f"…{name[len(name) - width + 1 :]}" for name in names}
    if len(set(ends.values())) == len(names):
        return ends
    columns = itertools.zip_longest(*map(_SEPARATOR.split, names), fillvalue="")
    differing: list[Sequence[str]] = [column for column in columns if len(set(column)) > 1]
    # From where the parts of a column differ: weight_ih_reverse and weight_hh_reverse.
    later: list[Sequence[str]] = [_without_shared(column) for column in differing]
    fitting: dict[str, str] = {}
    for parts, length in itertools.product((differing, later), (None, *range(_LONGEST_PART, 0, -1))):
        cut = [_cut(column, length) for column in parts]
        for name, texts in zip(names, zip(*cut, strict=True), strict=True):
            own = ".".join(filter(None, texts)).lstrip("…")  # a name without its common prefix begins with this mark
            room = width - len(own) - 2
            if room >= _LEAST_END:
                fitting[name] = f"…{own}…{name[-room:]}"
        if len(fitting) == len(names):
            break
    return fitting


def _shared(several: Iterable[Sequence[str]]) -> list[str]:
    """Return the first items that all sequences share: parts of names, or characters of texts."""
    columns = zip(*several, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def _without_shared(column: Sequence[str]) -> list[str]:
    """Return texts without the first characters that all share."""
    begin = len(_shared(column))
    return [text[begin:] for text in column]


def _cut(column: Sequence[str], length: int | None) -> Sequence[str]:
    """Return the first characters of each part, or the whole parts if those would not differ."""
    cut = [part[:length] for part in column]
    return cut if len(set(cut)) == len(set(column)) else column


def _widths(rows: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _line(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> str:
    aligned = [
        cell.ljust(width) if column in left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return _GAP.join(aligned).rstrip()
