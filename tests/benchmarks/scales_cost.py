"""Measure the cost of the law of noise with unequal scales in readings of published layers during a training.

    python -m tests.benchmarks.scales_cost FOLDER [--moved 0.001] [--steps 24]

FOLDER is that of `tests.benchmarks.networks`. Its layers are read again and again, each weight moved by a part of its
standard deviation in between, in turn with and without the scales of rows and columns: without them there is only the
Marchenko-Pastur law. Printed are the CPU time of all readings with them over that without, in one thread, for first
readings and for later ones, and how many of the laws that later ones needed were computed again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.spectrum.decomposition import Facts
from esdmon.spectrum.laws import NoiseLaw
from esdmon.spectrum.recent_laws import RecentLaws
from esdmon.spectrum.scales import Profile
from esdmon.spectrum.separable import separable_laws
from esdmon.weights import Drift
from tests.benchmarks.networks import stacks
from tests.benchmarks.reading import move

CLASSES = ((32, 64), (64, 128), (128, 256), (32, 256), (256, 1 << 30))
"""M from and below which layers make a class."""


def layer_of(stack: Tensor) -> nn.Module:
    """Return a layer with that (slices, out, in) weight."""
    slices, rows, columns = stack.shape
    layer = nn.Linear(columns, rows, bias=False) if slices == 1 else nn.Conv1d(columns, rows, slices, bias=False)
    with torch.no_grad():
        layer.weight.copy_(stack[0] if slices == 1 else stack.permute(1, 2, 0))
    return layer


def measure(layers: nn.ModuleDict, steps: int, moved: float) -> tuple[float, float, str]:
    """Return with over without for first readings and for those that follow, and the share of laws computed again."""
    plugins = Plugins()
    measures = choose_measures("default", plugins.measures)

    def read(reader: Reader, step: int, *, has_scales: bool) -> float:
        marks = {name: reader.mark(name) for name in layers}
        with patch.object(Facts, "may_have_scales", Facts.may_have_scales if has_scales else False):
            start = time.process_time()
            for name in layers:
                assert reader.begin(name, step, moved=marks[name])().status == "ok"
            return time.process_time() - start

    def first(*, has_scales: bool) -> float:
        return read(Reader(layers, plugins, ReadingOptions(measures)), 0, has_scales=has_scales)

    ways = (True, False)
    first(has_scales=True)
    firsts = {way: statistics.median([first(has_scales=way) for _ in range(5)]) for way in ways}
    calls, look_up = Counter[str](), RecentLaws.__call__

    def counted_look_up(laws: RecentLaws, profile: Profile) -> tuple[NoiseLaw, ...]:
        calls["needed"] += 1
        return look_up(laws, profile)

    def counted_laws(profile: Profile) -> tuple[NoiseLaw, ...]:
        calls["computed"] += 1
        return separable_laws(profile)

    reader = Reader(layers, plugins, ReadingOptions(measures), drift=Drift())
    times = {way: list[float]() for way in ways}
    with (
        patch("esdmon.spectrum.recent_laws.separable_laws", counted_laws),
        patch.object(RecentLaws, "__call__", counted_look_up),
    ):
        for step in range(steps):
            for layer in layers.values():
                move(layer, moved)
            times[step % 2 == 0].append(read(reader, step, has_scales=step % 2 == 0))
            if step < 2:
                calls.clear()
    later = {way: statistics.median(of[1:]) for way, of in times.items()}
    return firsts[True] / firsts[False], later[True] / later[False], f"{calls['computed']} of {calls['needed']}"


def main() -> None:
    """Print a line for each class of layers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--moved", type=float, default=1e-3, help="of the standard deviation of a weight")
    parser.add_argument("--steps", type=int, default=24, help="readings of each layer, half of them with scales")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chosen: dict[tuple[int, int], nn.ModuleDict] = {each: nn.ModuleDict() for each in CLASSES}
    for _, stack in stacks(options.folder):
        m = min(stack.shape[1:])
        for low, high in CLASSES:
            if low <= m < high:
                chosen[low, high][str(len(chosen[low, high]))] = layer_of(stack)
    print(f"with scales over without, CPU time, each weight moved by {options.moved:g} of its standard deviation")
    for (low, high), layers in chosen.items():
        first, later, computed = measure(layers, options.steps, options.moved)
        upper = f" to {high - 1}" if high < 1 << 30 else " and more"
        print(
            f"M {low}{upper}, {len(layers)} layers: first {first:.2f}, later {later:.2f}, laws computed {computed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
