"""Define `WatchOptions`: the options of `watch()` and of the callbacks for Trainers, validated once."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Self, TypedDict, TypeVar

from esdmon.alerts.config import AlertConfig
from esdmon.calls import unknown_option
from esdmon.errors import InputError
from esdmon.options.alerts import Alerts, alert_config
from esdmon.options.measures import choose_measures
from esdmon.options.sinks import Sinks, check_sinks
from esdmon.plugins import Plugins
from esdmon.records import Alert
from esdmon.records.values import whole
from esdmon.runtime.workers.executor import MODES
from esdmon.schedule import Schedule, as_schedule, union
from esdmon.schedule.budget import Budget
from esdmon.spectrum import Measure
from esdmon.weights import MIN_EIGENVALUES, Model, Selection, check_precision

Function = TypeVar("Function", bound=Callable[..., Any])


class WatchKeywords(TypedDict, total=False):
    """The fields of `WatchOptions` except `every` and `sinks`: types of `**keywords` for type checkers and editors."""

    budget: float | None
    mode: str
    workers: str | int
    alerts: Alerts
    on_alert: Callable[[Alert], object] | None
    stop_on: str | Sequence[str]
    save_on: str | Sequence[str]
    layers: Sequence[str] | None
    exclude: Sequence[str]
    min_eigenvalues: int
    max_eigenvalues: int | None
    reference: Model | str | os.PathLike[str] | None
    measures: str | Sequence[str]
    precision: str
    max_tags: int | None
    strict: bool
    plugins: Iterable[object]


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """The options of `watch()`, which describes each. They are checked, and resolved as far as no model is needed.

    Raises:
        InputError: for an option that cannot be used; the message names the value and the allowed values.
    """

    every: int | Schedule = 200
    budget: float | None = 0.01
    mode: str = "auto"
    workers: str | int = "auto"
    sinks: Sinks = "auto"
    alerts: Alerts = "default"
    on_alert: Callable[[Alert], object] | None = None
    stop_on: str | Sequence[str] = ()
    save_on: str | Sequence[str] = ()
    layers: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    min_eigenvalues: int = MIN_EIGENVALUES
    max_eigenvalues: int | None = None
    reference: Model | str | os.PathLike[str] | None = None
    measures: str | Sequence[str] = "default"
    precision: str = "auto"
    max_tags: int | None = 200
    strict: bool = False
    plugins: Iterable[object] = ()

    known: Plugins = field(init=False, repr=False, compare=False)
    """The installed plugins and those of `plugins`, with their measures, rules and sinks."""
    schedule: Schedule = field(init=False, repr=False, compare=False)
    """The schedule of `every`, joined with the schedules of plugins."""
    chosen_measures: tuple[Measure, ...] = field(init=False, repr=False, compare=False)
    """The measures that `measures` selects."""
    alert_config: AlertConfig = field(init=False, repr=False, compare=False)
    """The rules of `alerts`, with the actions of `stop_on` and `save_on`."""

    def __post_init__(self) -> None:
        """Check the options, and resolve them."""
        for name in _LISTS:
            value: object = self.__dict__[name]
            if isinstance(value, Iterator):  # a generator gives its items once, and options are read again
                self.__dict__[name] = tuple(value)
        for name in _ALLOWED:
            if name in self.__dict__:
                check(name, self.__dict__[name])
        Budget(self.budget)
        check_precision(self.precision)
        schedule, known = as_schedule(self.every), Plugins(self.plugins)
        check_sinks(self.sinks, known)
        self.__dict__.update(  # the dataclass is frozen
            known=known,
            schedule=schedule if known.schedule is None else union(schedule, known.schedule),
            chosen_measures=choose_measures(self.measures, known.measures),
            alert_config=alert_config(self.alerts, known, stop_on=self.stop_on, save_on=self.save_on),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a constructor that takes the options, since loaded plugins cannot be pickled."""
        return partial(type(self), **{name: getattr(self, name) for name in OPTIONS}), ()

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any], *, besides: Iterable[str] = ()) -> Self:
        """Return the options for the keywords of a call.

        Args:
            keywords: values of options by name.
            besides: other keywords of the call, which are suggested too if an unknown option resembles one.

        Raises:
            InputError: for an unknown option, and for a value that cannot be used; the message names the remedy.
        """
        for name in keywords:
            if name not in OPTIONS:
                raise unknown_option(name, (*OPTIONS, *besides))
        return cls(**keywords)

    @property
    def selection(self) -> Selection:
        """Return the selection of the matrices to read."""
        return Selection(self.layers, self.exclude, self.min_eigenvalues, self.max_eigenvalues)


_DEFAULTS = {each.name: each.default for each in fields(WatchOptions) if each.init}
OPTIONS = tuple(_DEFAULTS)
"""The names of all options."""
_LISTS = ("alerts", "stop_on", "save_on", "layers", "exclude", "measures", "plugins")


def shows_options(function: Function) -> Function:
    """Set the signature of a function with `**keywords: Unpack[WatchKeywords]`, so that `help()` lists the options."""
    signature = inspect.signature(function)
    own = {name: each for name, each in signature.parameters.items() if each.kind is not each.VAR_KEYWORD}
    options = {
        each.name: inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type
        )
        for each in fields(WatchOptions)
        if each.init
    }
    first = {name: each for name, each in own.items() if each.kind is not each.KEYWORD_ONLY}
    parameters = first | {name: each for name, each in options.items() if name not in first} | own
    function.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
    return function


def is_default(name: str, value: object) -> bool:
    """Return whether a value is the default of an option; a list equals the tuple of its items."""
    default = _DEFAULTS[name]
    plain = tuple(value) if isinstance(value, list) else value
    return plain is default or (isinstance(plain, bool | int | float | str | tuple) and plain == default)


def check(name: str, value: object) -> None:
    """Check the value of one option, independent of the others.

    Raises:
        InputError: for a value that cannot be used.
    """
    is_allowed, allowed = _ALLOWED[name]
    if not is_allowed(value):
        raise InputError(f"{name}= must be {allowed}; got {value!r}")


def _is_whole(value: object) -> bool:
    number = whole(value)
    return number is not None and number >= 0


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_patterns(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Iterable) and not isinstance(value, dict) and all(isinstance(each, str) for each in value)
    )


def _or_none(is_allowed: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_allowed(value)


_MODES = ("auto", *MODES)
_ALLOWED: dict[str, tuple[Callable[[object], bool], str]] = {
    "mode": (_MODES.__contains__, f"one of {', '.join(_MODES)}"),
    "workers": (
        lambda value: value == "auto" or _is_whole(value),
        "'auto', or a number of threads or worker processes, 0 or more",
    ),
    "max_tags": (_or_none(_is_whole), "a number of series, 0 or more, or None for all"),
    "first_step": (_is_whole, "a number of steps, 0 or more"),
    "strict": (_is_bool, "True or False"),
    "hook": (_is_bool, "True or False"),
    "layers": (_or_none(_is_patterns), "a list of patterns of names, or None for all"),
    "exclude": (_is_patterns, "a list of patterns of names"),
    "on_alert": (_or_none(callable), "a function that takes an Alert"),
}
"""For each option, a check and a text of the allowed values. `hook` and `first_step` are options of `watch()` only."""
