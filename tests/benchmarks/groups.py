"""Compare the groups of convolutions that follow from a state dict with those of the module, for architectures of timm.

    python -m tests.benchmarks.groups [--each 3] [--only PATTERN]

No weight is made. Of each family the first few architectures are taken, for pictures of three channels and of one, in
the order of the module and in that of safetensors. A line for each network in which some differ, with the first.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from importlib import import_module

import torch
from torch import nn

from esdmon.records.table import natural_key
from esdmon.weights import discover
from esdmon.weights.checkpoint.mapping import Checkpoint

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_FAMILY = re.compile(r"[a-z]+_?[a-z]*")


def networks(each: int, only: str) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over names and networks."""
    timm = import_module("timm")
    for channels in (3, 1):
        count: Counter[str] = Counter()
        for name in timm.list_models(only):
            family = _FAMILY.match(name)
            count[family[0] if family else name] += 1
            if not fnmatchcase(name, only) or (family and count[family[0]] > each):
                continue
            model = None
            with suppress(Exception), torch.device("meta"):  # it needs another package, or pictures of three channels
                model = timm.create_model(name, in_chans=channels)
            if model is not None:
                yield f"{name} of {channels} channels", model


def different(model: nn.Module) -> tuple[int, list[str]]:
    """Return the number of convolutions, and those that have another shape in a state dict, in either order."""
    kinds = {name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}
    expected = {each.name: each.size().shape for each in discover(model).matrices if each.name in kinds}
    state = model.state_dict(keep_vars=True)
    wrong: dict[str, None] = {}
    for names in (list(state), sorted(state, key=natural_key)):
        checkpoint = Checkpoint({name: state[name] for name in names}, state.__getitem__)
        found = {each.name: each.size().shape for each in discover(checkpoint).matrices}
        wrong |= dict.fromkeys(name for name, shape in expected.items() if found.get(name) != shape)
    return len(expected), list(wrong)


def main() -> None:
    """Print a line for each network that differs, and how many do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=3, help="architectures of each family")
    parser.add_argument("--only", default="*", help="names of architectures")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for name, model in networks(options.each, options.only):
        count, wrong = different(model)
        total.update(networks=1, convolutions=count, differ=bool(wrong), convolutions_that_differ=len(wrong))
        if wrong:
            print(f"{name}: {len(wrong)} of {count}, such as {wrong[0]}")
    print(dict(total))


if __name__ == "__main__":
    main()
