"""Measure the memory of a scan of a checkpoint on disk, in multiples of its largest tensor.

    python -m pip install -c constraints.txt -e ".[test]" && python -m tests.benchmarks.checkpoint_memory

A checkpoint of 2 GB, whose tensors have 100 MB each, is made in each format and read by `esdmon.analyze` in a process
of its own, after a small one has loaded the libraries, and with two worker processes besides. Printed is the most that
was resident, every millisecond, above what was before; with workers, in all processes together.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.fixtures.memory import MEASURE

WIDE, NARROW = 16_384, 1536  # 100 MB in float32
WORKERS = (1, 2)
Tensors = dict[str, Tensor]


def distributed(tensors: Tensors, path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group: none is wanted
        save(tensors, checkpoint_id=path, no_dist=True)


FORMATS: dict[str, Callable[[Tensors, Path], object]] = {
    ".pt": torch.save,
    ".safetensors": save_file,
    "distributed": distributed,
}


def held(save: Callable[[Tensors, Path], object], form: str, gigabytes: float) -> list[float]:
    """The peak over the size of one tensor, by number of workers."""
    size = WIDE * NARROW * 4
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}{form}" for name in ("small", "large")]
        for path, rows, count in zip(paths, (2 * NARROW, WIDE), (1, round(gigabytes * 1e9 / size)), strict=True):
            one = torch.randn(rows, NARROW)
            save({f"layer{i}.weight": one + i * 1e-3 for i in range(count)}, path)
        measured = [
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", MEASURE, *map(str, paths), str(workers)],
                capture_output=True,
                text=True,
                check=True,
            )
            for workers in WORKERS
        ]
    return [int(each.stdout) / size for each in measured]


def main() -> None:
    """A line for each format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.0)
    gigabytes = parser.parse_args().gigabytes
    print(f"{gigabytes:g} GB in tensors of {WIDE * NARROW * 4 / 1e6:.0f} MB; the most that is held, in tensors")
    for form, save in FORMATS.items():
        alone, beside = held(save, form, gigabytes)
        print(f"{form:<14} {alone:.2f}   limit 3; with {WORKERS[1]} workers {beside:.2f}", flush=True)


if __name__ == "__main__":
    main()
