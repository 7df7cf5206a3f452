"""Read from peft's `adapter_config.json` the rank, alpha and scale of the adapter of a layer.

diffusers writes the same settings into the header of its file, with the component of the pipeline before each key.

Ranks and alphas of single layers are in dictionaries of regular expressions (`rank_pattern`, `alpha_pattern`). A file
may come from anywhere, so expressions that could take long to match are not evaluated, and layers that they may apply
to are left out.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from esdmon.errors import UnreadableError

_SLOW = re.compile(r"[)}][*+{]|\(\?(?!:)|\\[1-9]")
"""Parts of an expression that may make matching slow: repeated groups, look-around and backreferences."""
_REPETITION = re.compile(r"(?<!\\)[*+{]")
_MOST_REPETITIONS = 3  # in one expression, since they are tried in all combinations; our choice
_LONGEST = 200  # characters of one expression, or of a name; our choice


def adapter_scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return lora_alpha/r, or lora_alpha/√r with `use_rslora`; 1 where no configuration says it.

    Raises:
        UnreadableError: if a pattern that may apply to the layer is not evaluated.
    """
    config, layer = _of_component(config, layer)
    alpha = _for_layer(config, "alpha_pattern", layer, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or rank < 1:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def adapter_rank(config: Mapping[str, Any], layer: str) -> int | None:
    """Return the rank of a layer's adapter; None if the configuration does not say it.

    Raises:
        UnreadableError: if a pattern that may apply to the layer is not evaluated.
    """
    config, layer = _of_component(config, layer)
    rank = _for_layer(config, "rank_pattern", layer, config.get("r"))
    return rank if isinstance(rank, int) and rank > 0 else None


def target_parameters(config: Mapping[str, Any], owner: str) -> list[str]:
    """Return the parameters of a module that have adapters of their own, as `target_parameters` names them."""
    targets = config.get("target_parameters")
    found = (str(target).rpartition(".") for target in (targets if isinstance(targets, list) else ()))
    return [last for path, _, last in found if not path or f".{owner}".endswith(f".{path}")]


def _of_component(config: Mapping[str, Any], layer: str) -> tuple[Mapping[str, Any], str]:
    """Return the settings for the component of a pipeline that a layer is in, and its name there."""
    component, _, inside = layer.partition(".")
    own = {key.removeprefix(f"{component}."): value for key, value in config.items() if key.startswith(f"{component}.")}
    return (own, inside) if own else (config, layer)


def _for_layer(config: Mapping[str, Any], patterns: str, layer: str, default: object) -> object:
    """Return the value of the first pattern that ends the name of a layer, as peft matches them."""
    by_pattern = config.get(patterns)
    for pattern, value in by_pattern.items() if isinstance(by_pattern, dict) else ():
        expression = _compiled(str(pattern))
        if expression is None or len(layer) > _LONGEST:
            why = f"{patterns} of its adapter_config.json has an expression that is not evaluated"
            raise UnreadableError("skipped", f"{why}: {str(pattern)[:60]!r}")
        if expression.match(layer):
            return value
    return default


def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Return the expression that peft makes of a pattern; None for one that may be slow, or is none."""
    plain = pattern.replace("\\\\", "")
    is_slow = _SLOW.search(plain) or len(_REPETITION.findall(plain)) > _MOST_REPETITIONS or len(pattern) > _LONGEST
    if is_slow:
        return None
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        return None
