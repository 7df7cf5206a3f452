"""Refuse a call that has wrong arguments, with the option that may be meant, or else all options there are."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from esdmon.errors import InputError, nearest

Called = TypeVar("Called", bound=Callable[..., Any])

_SIMILARITY = 0.8
"""From here on a name is a misspelling; below, 'modules' is like 'mode', and 'device' like 'every'. Our choice."""
_BOUND = {"self", "cls"}  # arguments that are not in the call of a method
_ABBREVIATED = 3  # options that may begin with what was given; more say nothing
_VERBS: Final = {"log", "logging", "n", "num", "number", "output", "outputs", "read", "run", "save", "use", "write"}
"""Words that do not say what an option is about, such as that of `log_every`."""
_FILES: Final = "dir directory file filename folder logdir path writer"
_TRACKERS: Final = "console csv entity jsonl logger loggers mlflow project tensorboard tracker trackers wandb webhook"
_WHERE: Final = (
    'sinks= says where readings go: "tensorboard:DIR", "jsonl:PATH", "csv:PATH", "wandb", "console", or several'
)
_RULES: Final = "alerts= takes names of rules, rules of your own, or a TOML file that sets thresholds"
_RUN: Final = "run= takes the JSONL of a run, or its folder"
_WISHES: Final = (
    (f"{_FILES} {_TRACKERS}", "sinks", _WHERE),
    (f"{_FILES} jsonl", "run", _RUN),
    ("freq frequency interval period steps", "every", "every= says how many steps lie between readings"),
    ("include modules names targets", "layers", 'layers= says what is read, such as ["encoder.*"]'),
    ("rule rules threshold thresholds", "alerts", _RULES),
    ("callback callbacks", "on_alert", "on_alert= takes a function that is called with each alert"),
)
"""Words in names that are tried for an option, the option, and how it is used."""


def unknown_option(name: str, options: Iterable[str]) -> InputError:
    """Return the error for an unknown option: with the nearest ones, what to give in its place, or all that there are.

    Args:
        name: the keyword that was given.
        options: the keywords that the call has.
    """
    known = list(options)
    if not known:
        return InputError(f"unknown option {name}=. This call has no options.")
    words = [word for word in name.lower().split("_") if word not in _VERBS]
    remedy = nearest("_".join(words) or name, known, cutoff=_SIMILARITY)
    for names, option, how in _WISHES:
        if not remedy and words and option in known and set(words) <= set(names.split()):
            remedy = f" {how}."
    remedy = remedy or _longer(name, known) or f" Options here: {', '.join(known)}."
    return InputError(f"unknown option {name}=.{remedy}")


def explain_wrong_calls(target: Called) -> Called:
    """Have wrong calls of a function, or of a class, raise `InputError` with the remedy, and not a bare TypeError.

    Calls that Python accepts are as before, also where they raise a TypeError of their own.
    """
    if isinstance(target, type):
        # A dataclass with slots is another class than the one whose body was run, so that its method is taken here.
        target.__init__ = _explained(target.__init__, target.__name__)  # type: ignore[misc]
        return target
    explained: Any = _explained(target, target.__name__)
    return explained  # type: ignore[no-any-return]


def _explained(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except TypeError:
            if _is_accepted(signature, given, named):
                raise
        _refuse(name, signature, given, named)

    return call


def _is_accepted(signature: inspect.Signature, given: Sequence[object], named: Mapping[str, object]) -> bool:
    try:
        signature.bind(*given, **named)
    except TypeError:
        return False
    return True


def _refuse(
    function: str, signature: inspect.Signature, given: Sequence[object], named: Mapping[str, object]
) -> NoReturn:
    """Raise for a call that a function does not accept.

    Raises:
        InputError: for an unknown option, one that was given twice, too many arguments, or one that is missing.
    """
    parameters = {name: each for name, each in signature.parameters.items() if name not in _BOUND}
    count = len(given) - (len(signature.parameters) - len(parameters))
    options = [name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD]
    placed = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    for name in named:
        if name not in options:
            raise unknown_option(name, options)
        if name in placed[:count]:
            raise InputError(f"{function}() has {name}= twice: by position, and by name. Leave out one of them.")
    if count > len(placed):
        others = [f"{name}=" for name in options if name not in placed]
        remedy = f"Give the others by name: {', '.join(others)}." if others else "Leave out the others."
        taken = f"only {', '.join(placed)}" if placed else "nothing"
        raise InputError(f"{function}() takes {taken} by position; arguments given: {count}. {remedy}")
    missing = [
        f"{name}="
        for name, each in parameters.items()
        if each.default is each.empty and name not in (*placed[:count], *named) and name in options
    ]
    raise InputError(f"{function}() needs {', '.join(missing)}, which is missing from the call.")


def _longer(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'number'?"` for an abbreviation, or for a name with an option among its words."""
    found = [option for option in known if option.startswith(name.lower()) or option in name.lower().split("_")]
    return f" Did you mean {' or '.join(map(repr, found))}?" if 0 < len(found) <= _ABBREVIATED else ""
