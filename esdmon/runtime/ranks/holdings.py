"""Describe which rank of a job holds which part of a parameter, and list the matrices of all ranks by name.

Each rank announces a `Table`, computed from metadata; rank 0 joins the tables. Replicas, fragments that several ranks
hold (under DDP or HSDP, or of a layer on a part of the mesh), are recognised by equal boxes with equal content, so that
the meshes need not be known. Equal names with different content are different weights, such as those of pipeline stages
that count their layers from 0, or of experts. Each is read as `name@rank`, with the first rank that holds the weight.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Self, final

from esdmon.records import Coverage
from esdmon.records.report import Skipped
from esdmon.schedule.fragments import Fragment, covers


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a sharded parameter on one rank."""

    shape: tuple[int, ...]
    item: int
    """Number of bytes of an element."""
    fragment: Fragment | None
    content: str
    """A hash of a few elements of the fragment."""
    group: int
    """The first of the ranks that share the parameter."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A matrix in the table of one rank."""

    seconds: float
    """Estimated time of a reading, up to a common factor."""
    parameters: tuple[str, ...] = ()
    """The sharded parameters behind the matrix; none if this rank holds all of the matrix."""
    content: str = ""
    """A hash of a few elements, if this rank holds all of the matrix."""
    size: int = 0
    """Number of parameters in the matrix; 0 for a part of a matrix that is also listed as a whole."""
    side: int = 0
    """The longer side; 0 if norms of the matrix, or of this rank's part of it, cannot be computed between readings."""


@dataclass(frozen=True, slots=True)
class Table:
    """The list of matrices and parameters on one rank."""

    rank: int
    address: str
    """Address from which copies of its fragments are fetched; empty if it has none."""
    matrices: Mapping[str, Listed]
    parameters: Mapping[str, Part]
    skipped: tuple[tuple[str, int, str], ...] = ()
    """Parameters that are not watched: name, number of elements, reason."""
    copies: bool = False
    """True if the rank copies the weights that it reads, and so needs memory for the copies."""
    pauses: bool = False
    """True if there are times at which none of its threads begins to read."""

    def to_json(self) -> str:
        """Return the table as JSON."""
        matrices = [[n, m.seconds, m.parameters, m.content, m.size, m.side] for n, m in self.matrices.items()]
        parameters = [
            [n, p.shape, p.item, p.fragment and p.fragment.to_plain(), p.content, p.group]
            for n, p in self.parameters.items()
        ]
        return json.dumps([self.rank, self.address, matrices, parameters, self.skipped, self.copies, self.pauses])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the table that `to_json` was called on."""
        rank, address, matrices, parameters, skipped, *flags = json.loads(text)
        return cls(
            rank,
            address,
            {name: Listed(seconds, tuple(behind), *rest) for name, seconds, behind, *rest in matrices},
            {name: _part(*rest) for name, *rest in parameters},
            tuple((name, count, why) for name, count, why in skipped),
            *flags,
        )


def _part(shape: list[int], item: int, fragment: list[Any] | None, content: str, group: int) -> Part:
    return Part(tuple(shape), item, None if fragment is None else Fragment.from_plain(fragment), content, group)


@dataclass(frozen=True, slots=True)
class Entry:
    """A matrix of the job."""

    seconds: float
    parameters: tuple[str, ...]
    """The sharded parameters behind it, by their names in the job."""
    readers: tuple[int, ...]
    """The ranks that can read or assemble the matrix."""
    size: int = 0
    """Number of parameters in the matrix."""
    side: int = 0
    """The longer side; 0 if norms of the matrix cannot be computed between readings."""
    reason: str = ""
    """Reason why no rank can read the matrix; empty if a rank can."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The rank that serves a fragment."""

    rank: int
    fragment: Fragment
    address: str
    replicas: tuple[int, ...] = ()
    """The other ranks that hold the same fragment, and so need no copy of it."""


@final
@dataclass(frozen=True, slots=True)
class Holdings:
    """The tables of all ranks, joined."""

    matrices: Mapping[str, Entry] = field(default_factory=dict)
    """All matrices by name in the job, in the order of the models."""
    holders: Mapping[str, tuple[Holder, ...]] = field(default_factory=dict)
    """One holder for each fragment of a sharded parameter."""
    bytes_of: Mapping[str, int] = field(default_factory=dict)
    """Number of bytes of each whole parameter."""
    names: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """For each rank, the names in the job of its matrices and parameters, if they differ from its own names."""
    coverage: Coverage = field(default_factory=lambda: Coverage(0, 0))

    @property
    def missing(self) -> set[str]:
        """Return the matrices that no rank can read."""
        return {name for name, entry in self.matrices.items() if entry.reason}

    def local_names(self, rank: int) -> dict[str, str]:
        """Return a rank's own names by the names in the job, if they differ."""
        return {other: own for own, other in self.names.get(rank, {}).items()}

    def copies(self) -> dict[int, dict[str, tuple[int, ...]]]:
        """Return for each rank the parameters, by their names in the job, whose fragment it serves, with replicas."""
        copies: dict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for name, holders in self.holders.items():
            for holder in holders:
                copies[holder.rank][name] = holder.replicas
        return copies


def join(tables: Mapping[int, Table], paused: Collection[int] = (), left: Collection[int] = ()) -> Holdings:
    """Join the tables of all ranks to one list of matrices.

    Args:
        tables: the tables by rank.
        paused: ranks that neither read nor serve fragments now.
        left: ranks that have closed their monitors. Their matrices are listed, but cannot be read any more.
    """
    away = {*paused, *left}
    suffixes = _suffixes(tables)
    names = {rank: _renamed(tables[rank], suffixes) for rank in tables}
    parts: dict[str, list[tuple[int, Part]]] = defaultdict(list)
    listed: dict[str, list[tuple[int, Listed]]] = defaultdict(list)
    orders: list[list[str]] = []
    for rank, table in sorted(tables.items()):
        in_job = names[rank]
        orders.append([in_job.get(name, name) for name in table.matrices])
        for name, part in table.parameters.items():
            parts[in_job.get(name, name)].append((rank, part))
        for name, matrix in table.matrices.items():
            behind = tuple(in_job.get(each, each) for each in matrix.parameters)
            listed[in_job.get(name, name)].append((rank, replace(matrix, parameters=behind)))
    holders, reasons = _choose_holders(parts, tables, away)
    matrices = {name: _entry(listed[name], reasons, away, left) for name in _merged(orders)}
    sizes = {name: rows[0][1].item * prod(rows[0][1].shape) for name, rows in parts.items()}
    return Holdings(matrices, holders, sizes, names, _coverage(tables, matrices))


def _suffixes(tables: Mapping[int, Table]) -> dict[tuple[int, str], str]:
    """Return the suffix `@rank` by rank and name, for matrices and parameters whose name stands for several weights."""
    parts: dict[str, list[Part]] = defaultdict(list)
    firsts: dict[str, dict[str, int]] = defaultdict(dict)
    for rank, table in sorted(tables.items()):
        for name, part in table.parameters.items():
            parts[name].append(part)
        for name, matrix in table.matrices.items():
            if not matrix.parameters:
                firsts[name].setdefault(matrix.content, rank)
    several = {name for name, found in parts.items() if len({each.group for each in found}) > 1 and _is_several(found)}
    suffixes: dict[tuple[int, str], str] = {}
    for rank, table in tables.items():
        suffixes |= {(rank, name): f"@{part.group}" for name, part in table.parameters.items() if name in several}
        for name, matrix in table.matrices.items():
            if matrix.parameters:
                for each in several.intersection(matrix.parameters):
                    suffixes[rank, name] = suffixes[rank, each]
            elif len(firsts[name]) > 1:
                suffixes[rank, name] = f"@{firsts[name][matrix.content]}"
    return suffixes


def _is_several(parts: Iterable[Part]) -> bool:
    """Return whether parts with the same name belong to different parameters."""
    parts = list(parts)
    return len({part.shape for part in parts}) > 1 or _differ(parts) or _excess(parts)


def _differ(parts: Iterable[Part]) -> bool:
    contents: dict[Fragment, set[str]] = defaultdict(set)
    for part in parts:
        if part.fragment is not None:
            contents[part.fragment].add(part.content)
    return any(len(found) > 1 for found in contents.values())


def _excess(parts: list[Part]) -> bool:
    found = {part.fragment for part in parts if part.fragment is not None}
    return sum(fragment.n_elements for fragment in found) > prod(parts[0].shape)


def _renamed(table: Table, suffixes: Mapping[tuple[int, str], str]) -> dict[str, str]:
    return {
        name: name + suffixes[table.rank, name]
        for name in (*table.matrices, *table.parameters)
        if (table.rank, name) in suffixes
    }


def _choose_holders(
    parts: Mapping[str, list[tuple[int, Part]]], tables: Mapping[int, Table], away: Collection[int]
) -> tuple[dict[str, tuple[Holder, ...]], dict[str, str]]:
    """Return one holder for each fragment, so that bytes are spread evenly, and reasons for unreadable parameters."""
    load: dict[int, int] = dict.fromkeys(tables, 0)
    chosen: dict[str, tuple[Holder, ...]] = {}
    reasons: dict[str, str] = {}
    for name, rows in parts.items():
        ranks: dict[Fragment, list[int]] = defaultdict(list)
        for rank, part in rows:
            if part.fragment is not None and rank not in away:
                ranks[part.fragment].append(rank)
        shape = rows[0][1].shape
        if _differ(part for _, part in rows):
            reasons[name] = "ranks hold different values of the same part of it"
        elif not covers(ranks, shape):
            held = sum(fragment.n_elements for fragment in ranks)
            reasons[name] = f"{held:,} of {prod(shape):,} elements are held by ranks that watch"
            reasons[name] += " and answer" if away else ""
        found = []
        for fragment, holding in ranks.items():
            rank = min(holding, key=lambda rank: (load[rank], rank))
            load[rank] += fragment.n_elements * rows[0][1].item
            replicas = tuple(other for other in holding if other != rank)
            found.append(Holder(rank, fragment, tables[rank].address, replicas))
        chosen[name] = tuple(found)
    return chosen, reasons


def _entry(
    rows: Sequence[tuple[int, Listed]], reasons: Mapping[str, str], away: Collection[int], left: Collection[int]
) -> Entry:
    """Return a matrix of the job, from the tables of the ranks that have it."""
    rank, first = rows[0]
    readers = tuple(rank for rank, _ in rows if rank not in away)
    reason = next((reasons[name] for name in first.parameters if name in reasons), "")
    if not readers:
        reason = f"rank {rank}, which holds it, {'has closed its monitor' if rank in left else 'does not answer'}"
    side = min(matrix.side for _, matrix in rows)
    return Entry(first.seconds, first.parameters, readers, first.size, side, reason)


def _merged(orders: Iterable[Sequence[str]]) -> list[str]:
    """Return the names of all ranks in one order: new names of a rank are inserted before its next common name.

    So pipeline stages follow one another, and the experts of all ranks are adjacent.
    """
    merged: dict[str, None] = {}
    for names in orders:
        new: list[str] = []
        before: dict[str, list[str]] = {}
        for name in names:
            if name not in merged:
                new.append(name)
            elif new:
                before[name], new = new, []
        if before:
            merged = dict.fromkeys(each for name in merged for each in (*before.get(name, ()), name))
        merged |= dict.fromkeys(new)
    return list(merged)


def _coverage(tables: Mapping[int, Table], matrices: Mapping[str, Entry]) -> Coverage:
    """Return the coverage of the job: its matrices, and the parameters of any rank that are skipped."""
    skipped = {name: Skipped(name, count, why) for table in tables.values() for name, count, why in table.skipped}
    lost = {name: Skipped(name, entry.size, entry.reason) for name, entry in matrices.items() if entry.reason}
    watched = sum(entry.size for entry in matrices.values() if not entry.reason)
    left = (*skipped.values(), *lost.values())
    return Coverage(watched, watched + sum(skip.n_parameters for skip in left), left)
