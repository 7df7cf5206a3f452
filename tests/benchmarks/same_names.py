"""Find the matrices of all architectures of transformers, and of timm where it is installed, in modules and in files.

    python -m tests.benchmarks.same_names [--only PATTERN]

No weight is made: modules are on the meta device, and a file is what `save_pretrained` would write, with its
`config.json`. A line for each architecture in which names or shapes differ, with the first matrices that do.
"""

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto as auto

from esdmon.weights import discover
from esdmon.weights.checkpoint.mapping import Checkpoint, Model

MAPPINGS = (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, auto.MODEL_MAPPING)
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
Build = Callable[[], tuple[nn.Module, Mapping[str, Tensor], dict[str, Any]]]
"""Makes a module, the state dict that it saves, and the configuration beside that."""


def shortened(config: Any, depth: int = 0) -> Any:
    """Return a configuration with two layers and at most 16 experts, where it can be changed."""
    for names, most in ((DEPTHS, 2), (EXPERTS, 16)):
        for name in names:
            with suppress(Exception):
                setattr(config, name, min(most, getattr(config, name)))
    with suppress(Exception):
        config.layer_types = config.layer_types[:2]
    inside = [value for value in vars(config).values() if isinstance(value, transformers.PretrainedConfig)]
    for value in inside if depth < 3 else ():
        shortened(value, depth + 1)
    return config


def of_transformers(kind: Any, config_kind: Any) -> Build:
    """Return what makes an architecture of transformers, with two layers, or all where that is refused."""

    def build() -> tuple[nn.Module, Mapping[str, Tensor], dict[str, Any]]:
        with torch.device("meta"):
            try:
                model = kind(shortened(config_kind()))
            except Exception:  # noqa: BLE001 -- some check that layers fit each other
                model = kind(config_kind())
        saved = revert_weight_conversion(model, dict(model.state_dict()))
        tied = getattr(model, "all_tied_weights_keys", None) or ()
        config = json.loads(model.config.to_json_string(use_diff=False))
        config["transformers_version"] = transformers.__version__
        return model, {name: weight for name, weight in saved.items() if name not in tied}, config

    return build


def of_timm(name: str) -> Build:
    """Return what makes an architecture of timm."""

    def build() -> tuple[nn.Module, Mapping[str, Tensor], dict[str, Any]]:
        with torch.device("meta"):
            model: nn.Module = import_module("timm").create_model(name)
        return model, model.state_dict(keep_vars=True), {"architecture": name}

    return build


def architectures() -> Iterator[tuple[str, Build]]:
    """Iterate over names and builders, one for each class of configuration."""
    seen = set()
    for mapping in MAPPINGS:
        for config_kind in list(mapping.keys()):
            kinds: Any = ()
            with suppress(Exception):  # a class that is named, and is not there
                kinds = mapping[config_kind] if config_kind not in seen else ()
            for kind in kinds if isinstance(kinds, tuple | list) else (kinds,):
                seen.add(config_kind)
                yield kind.__name__, of_transformers(kind, config_kind)
    if find_spec("timm"):
        yield from ((name, of_timm(name)) for name in import_module("timm").list_models())


def matrices(model: Model) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of the matrices that are read by default, by name."""
    return {matrix.name: matrix.size().shape for matrix in discover(model).matrices}


def main() -> None:
    """Print a line for each architecture that differs, and how many do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names of architectures")
    only = parser.parse_args().only
    logging.disable(logging.WARNING)
    counts = {"alike": 0, "other names": 0, "other shapes": 0, "not made": 0}
    for name, build in architectures():
        if not fnmatchcase(name, only):
            continue
        try:
            model, saved, config = build()
            in_module, in_file = matrices(model), matrices(Checkpoint(saved, saved.__getitem__, config=config))
        except Exception:  # noqa: BLE001 -- needs another package, or has no default configuration
            counts["not made"] += 1
            continue
        are_alike, same_shapes = in_module == in_file, sorted(in_module.values()) == sorted(in_file.values())
        what = "alike" if are_alike else "other names" if same_shapes else "other shapes"
        counts[what] += 1
        if not are_alike:
            differ = sorted({*in_module.items()} ^ {*in_file.items()})
            print(f"{name}: {what}, {len(differ)} of {len(in_module)}, such as {differ[0]}")
    print(counts)


if __name__ == "__main__":
    main()
