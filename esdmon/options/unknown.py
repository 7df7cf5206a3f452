"""Refuse an unknown keyword, with the option that may be meant, or else all options there are."""

from collections.abc import Iterable
from typing import Final

from esdmon.errors import InputError, nearest

_SIMILARITY = 0.8
"""From here on a name is a misspelling; below, 'modules' is like 'mode', and 'device' like 'every'. Our choice."""
_VERBS: Final = {"log", "logging", "n", "num", "number", "output", "outputs", "read", "run", "save", "use", "write"}
"""Words that do not say what an option is about, such as that of `log_every`."""
_FILES: Final = "dir directory file filename folder logdir path writer"
_TRACKERS: Final = "console csv entity jsonl logger loggers mlflow project tensorboard tracker trackers wandb webhook"
_WHERE: Final = (
    'sinks= says where readings go: "tensorboard:DIR", "jsonl:PATH", "csv:PATH", "wandb", "console", or several'
)
_RULES: Final = "alerts= takes names of rules, rules of your own, or a TOML file that sets thresholds"
_WISHES: Final = (
    (f"{_FILES} {_TRACKERS}", "sinks", _WHERE),
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
    words = [word for word in name.lower().split("_") if word not in _VERBS]
    remedy = nearest("_".join(words) or name, known, cutoff=_SIMILARITY)
    for names, option, how in _WISHES:
        if not remedy and words and option in known and set(words) <= set(names.split()):
            remedy = f" {how}."
    remedy = remedy or f" Options here: {', '.join(known)}."
    return InputError(f"Unknown option {name}=.{remedy}")
