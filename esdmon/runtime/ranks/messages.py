"""Define the messages that the ranks of a job exchange: plans, answers, roles and norms."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from esdmon.records import Screened
from esdmon.runtime.workers.source import Answer

_NORM_FIELDS = ("name", "step", "frobenius_norm", "spectral_norm", "residual", "N")


@dataclass(frozen=True, slots=True)
class Assignment:
    """The matrices that one rank reads at a due step, by their names in the job. They share their parameters."""

    owner: int
    names: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    """The sharded parameters that the rank assembles; empty if it holds all of the matrix."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The matrices that each rank reads at a due step, or at a poll between due steps."""

    version: int
    """Version of the holdings; a rank with another version looks up its role first."""
    assignments: tuple[Assignment, ...]
    polls: tuple[int, ...] = ()
    """Polls of the store for an extra plan until the next due step, as numbers of steps after the due step."""
    ending: int = 0
    """Number of blocks of steps in which readings end, before steps without readings are measured; 0 for no pause."""
    screened: tuple[tuple[str, str | int], ...] = ()
    """The matrices, by their names in the job, whose norms are computed; each with the sharded parameter that it is a
    part of, or the rank that computes them, which holds all of the matrix."""

    def to_json(self) -> str:
        """Return the plan as JSON."""
        assignments = [[assignment.owner, assignment.names, assignment.parameters] for assignment in self.assignments]
        return json.dumps([self.version, assignments, self.polls, self.ending, self.screened])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the plan that `to_json` was called on."""
        version, plain, polls, ending, screened = json.loads(text)
        assignments = tuple(Assignment(owner, tuple(names), tuple(behind)) for owner, names, behind in plain)
        return cls(version, assignments, tuple(polls), ending, tuple((name, where) for name, where in screened))


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of other ranks."""

    readings: Answer
    failures: Mapping[int, Mapping[int, str]]
    """For each rank that has answered: the ranks that did not serve their fragments to it, and why."""
    paces: Mapping[int, float]
    """For each rank: the seconds of reading per second of its budget."""
    seconds: Mapping[int, float]
    """For each rank: the seconds that its readings have taken."""
    missing: tuple[int, ...]
    """Ranks that have not answered."""


@dataclass(frozen=True, slots=True)
class Role:
    """The names and copies that a rank needs to follow plans."""

    local: Mapping[str, str]
    """The rank's own names by the names in the job, if they differ."""
    copies: Mapping[str, tuple[int, ...]]
    """The parameters, by their names in the job, whose fragment the rank serves, with the ranks that hold replicas."""


@dataclass(frozen=True, slots=True)
class RankNorms:
    """The norms that one rank has computed at a due step, by the names of the matrices in the job."""

    seconds: float = 0.0
    """Seconds that the rank has spent, in its hook and on its accelerator."""
    squares: Mapping[str, float] = field(default_factory=dict)
    """Σ wᵢⱼ² of the rank's parts of sharded matrices."""
    whole: tuple[Screened, ...] = ()
    """The norms of matrices that the rank holds completely."""

    def to_json(self) -> str:
        """Return the norms as JSON."""
        whole = [[getattr(each, name) for name in _NORM_FIELDS] for each in self.whole]
        return json.dumps([self.seconds, dict(self.squares), whole])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the norms that `to_json` was called on."""
        seconds, squares, plain = json.loads(text)
        whole = tuple(Screened(**dict(zip(_NORM_FIELDS, values, strict=True))) for values in plain)
        return cls(seconds, squares, whole)
