"""Compare whole models with WeightWatcher: equality of alphas, and cost in time and memory.

    python -m pip install -c constraints.txt -e ".[bench]" && python -m tests.benchmarks.whole_models

GPT-2 small, ResNet-50 and the sentence transformer MiniLM-L6 as initialised, each weight with an eighth of its rank
added at the strength of a Pareto law, as training leaves it. Both tools read the same file in processes of their own:

- alpha: of every matrix that WeightWatcher fits, given to esdmon by name; |Δalpha| in "exact" and in "auto" precision.
  A layer beyond the limit of "exact" is explained: that fit is made again as WeightWatcher makes it.
- speed: `WeightWatcher.analyze()` over `esdmon.analyze(model)`, measures and phases included, in turn in one process,
  medians, with one thread and with the default number; of wall times, and of CPU times, which others on the machine
  disturb less, and which count threads that wait. The two do not read quite the same by default: WeightWatcher takes
  the position embeddings and GPT-2's c_attn whole, esdmon leaves out the former and reads q, k and v. So a second pair
  of ratios is of the same matrices.
- everything: `analyze(mp_fit=True, randomize=True, ERG=True)` over the same `esdmon.analyze(model)`.
- memory: the high-water mark of resident memory above what the process held before, after a warm-up on two small
  layers. Linux reports it. Freed memory is given back at once, so that it neither counts nor hides anything.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import esdmon
from esdmon.spectrum import fit_power_law
from tests.benchmarks.models import save_models, small

Results = dict[str, Any]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SETTINGS: dict[str, Mapping[str, str]] = {
    "one thread": ONE_THREAD,
    "default threads": {},
    "memory": {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)},  # glibc would keep up to 64 MB of what is freed
}
DROPPED = 1e-5  # eigenvalues of WᵀW up to which WeightWatcher leaves out of the fit
FEW = 20  # eigenvalues below which it fits by another rule


def peer(model: nn.Module, **options: Any) -> Callable[[], Any]:
    """A call of WeightWatcher's analyze, in silence, which gives its table."""
    from weightwatcher import WeightWatcher

    watcher = WeightWatcher(model=model)

    def call() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return watcher.analyze(**options)

    return call


def own(model: nn.Module | Mapping[str, Tensor], **options: Any) -> Callable[[], esdmon.Report]:
    """A call of esdmon's."""
    return lambda: esdmon.analyze(model, **options)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of wall and of CPU."""
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - start_cpu


def whole(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """These weights under names of no architecture, so that none is taken apart."""
    return {f"layer{place}.weight": model.get_parameter(f"{name}.weight").detach() for place, name in enumerate(names)}


def alphas(model: nn.Module) -> Results:
    """Both tools' alphas of all that WeightWatcher fits, as differences; why, where one is beyond rounding."""
    table = peer(model)()
    theirs = {row.longname: row for row in table.itertuples()}
    weights = model.state_dict()
    alike = whole(model, list(theirs))
    reports = {
        precision: dict(zip(theirs, own(alike, layers=["*"], precision=precision)(), strict=True))
        for precision in ("exact", "auto")
    }
    names = [name for name in theirs if reports["exact"][name].status == "ok"]
    differences = {
        precision: [abs(report[name].measures["alpha"] - theirs[name].alpha) for name in names]
        for precision, report in reports.items()
    }
    read = {layer.name.partition("/")[0] for layer in own(model)() if layer.status == "ok"}
    layers = []
    for place, name in enumerate(names):
        exact = reports["exact"][name]
        if differences["exact"][place] > 1e-9:
            layers.append(f"{name}: Δalpha {differences['exact'][place]:.2g}, {why(weights, theirs[name], exact)}")
        if differences["auto"][place] > 1e-3:
            auto = reports["auto"][name]
            layers.append(
                f"{name}: Δalpha {differences['auto'][place]:.2g} in {auto.precision}, D {auto.measures['ks_distance']}"
                f" with {auto.measures['n_tail']:.0f} in the tail, in float64 {exact.measures['ks_distance']} with"
                f" {exact.measures['n_tail']:.0f}"
            )
    return {
        "common": len(names),
        "exact": max(differences["exact"]),
        "auto": max(differences["auto"]),
        "float32": sum(reports["auto"][name].precision == "float32" for name in names),
        "range": sorted(reports["exact"][name].measures["alpha"] for name in names)[:: max(1, len(names) - 1)],
        "only theirs": sorted(set(theirs) - read),
        "only ours": sorted(read - set(theirs)),
        "whole": sorted({layer.name for layer in own(model)() if "/" in layer.name}),
        "layers": layers,
    }


def why(weights: Mapping[str, Tensor], row: Any, report: esdmon.LayerReport) -> str:
    """What a fit on the same eigenvalues says, with those left out that WeightWatcher leaves out."""
    weight = weights[f"{row.longname}.weight"].double()
    scale = 0.5 if weight.ndim == 4 else 1.0
    stack = weight.flatten(2).permute(2, 0, 1) if weight.ndim == 4 else weight[None]
    lam = np.sort(scale * torch.linalg.svdvals(stack).numpy().ravel() ** 2)
    kept = lam[lam > DROPPED]
    fit = fit_power_law(kept)
    if kept.size < FEW:
        return f"{kept.size} eigenvalues: WeightWatcher fits fewer than {FEW} by another rule"
    reason = f"{lam.size - kept.size} of {lam.size} eigenvalues are under WeightWatcher's absolute {DROPPED:g}"
    return (
        f"{reason}, without them Δalpha {abs(fit.alpha - row.alpha):.2g};"
        f" tails {report.measures['n_tail']:.0f} and {row.num_pl_spikes}, D {report.measures['ks_distance']}, {row.D}"
    )


def speed(model: nn.Module, repeats: int) -> Results:
    """Median seconds, of wall and of CPU, of calls in turn: esdmon, WeightWatcher, esdmon on the same matrices."""
    theirs = peer(model)
    names = list(theirs().longname)
    ours, same = own(model), own(whole(model, names), layers=["*"])
    ours()
    assert sum(layer.status == "ok" for layer in same()) == len(names), "these are not the same matrices"
    taken = [[seconds(call) for call in (ours, theirs, same)] for _ in range(repeats)]
    wall, cpu = np.median(taken, axis=0).T.tolist()
    return {"wall": wall, "cpu": cpu}


def everything(model: nn.Module) -> Results:
    """Wall times of one call of WeightWatcher, with what esdmon's default includes, and of esdmon before and after."""
    ours = own(model)
    before = seconds(ours)[0]
    theirs = seconds(peer(model, mp_fit=True, randomize=True, ERG=True))[0]
    return {"esdmon": statistics.mean([before, seconds(ours)[0]]), "WeightWatcher": theirs}


def memory(model: nn.Module, call: Callable[[], object]) -> Results:
    """MiB at most above what was held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    call()
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) / 2**20
    return {"peak": resident("VmHWM") - before, "weights": held}


def resident(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def work(task: str, path: str, repeats: int) -> None:
    """What a process of its own does: warm up, read the model, measure, print JSON."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    if task != "memory of WeightWatcher":
        own(small())()
    if task != "memory of esdmon":
        peer(small())()
    # The file is ours, written a moment ago.
    model: nn.Module = torch.load(path, weights_only=False)
    results: Mapping[str, Callable[[], Results]] = {
        "alpha": lambda: alphas(model),
        "speed": lambda: speed(model, repeats),
        "everything": lambda: everything(model),
        "memory of esdmon": lambda: memory(model, own(model)),
        "memory of WeightWatcher": lambda: memory(model, peer(model)),
    }
    print(json.dumps(results[task]()))


def in_process(task: str, path: str, *, setting: str = "default threads", repeats: int = 1) -> Results:
    """The result of `work` in a fresh process with the threads of this setting."""
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    arguments = ["--work", task, "--model", path, "--repeats", str(repeats)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.whole_models", *arguments],
        env={**environment, **SETTINGS[setting]},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-4000:])
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


def show_alphas(paths: Mapping[str, str]) -> None:
    print("alpha of the same matrices")
    print(f"{'':<16} {'matrices':>8} {'alpha':>14} {'exact':>9} {'auto':>9} {'in float32':>10}")
    notes = []
    for name, path in paths.items():
        found = in_process("alpha", path)
        low, high = found["range"]
        print(
            f"{name:<16} {found['common']:8d} {low:6.2f} … {high:5.2f} {found['exact']:9.1e} {found['auto']:9.1e}"
            f" {found['float32']:10d}",
            flush=True,
        )
        notes += found["layers"]
        notes += [f"{name}: by default only WeightWatcher reads {layer}" for layer in found["only theirs"]]
        notes += [f"{name}: by default only esdmon reads {layer}" for layer in found["only ours"]]
        if found["whole"]:
            notes.append(f"{name}: by default esdmon reads {len(found['whole'])} parts such as {found['whole'][0]}")
    print("limits: exact 1e-9, auto 1e-3", *notes, sep="\n")


def show_speed(paths: Mapping[str, str], repeats: int) -> None:
    print(f"\nspeed, medians of {repeats}; ratios of wall times, of CPU times, of both on the same matrices")
    print(f"{'':<34} {'esdmon, s':>9} {'peer, s':>8} {'wall':>6} {'CPU':>6} {'same, wall':>11} {'same, CPU':>10}")
    for setting, limit in (("one thread", 4), ("default threads", 1)):
        ratios = []
        for name, path in paths.items():
            taken = in_process("speed", path, setting=setting, repeats=repeats)
            (ours, theirs, same), (ours_cpu, theirs_cpu, same_cpu) = taken["wall"], taken["cpu"]
            ratios.append((theirs / ours, theirs_cpu / ours_cpu, theirs / same, theirs_cpu / same_cpu))
            print(f"{setting:<16} {name:<17} {ours:9.2f} {theirs:8.2f} {in_columns(ratios[-1])}", flush=True)
        means = [statistics.geometric_mean(ratio) for ratio in zip(*ratios, strict=True)]
        print(f"{setting:<16} {'geometric mean':<35} {in_columns(means)}   limit {limit} of wall", flush=True)


def in_columns(ratios: Sequence[float]) -> str:
    return " ".join(f"{ratio:{width}.2f}" for ratio, width in zip(ratios, (6, 6, 11, 10), strict=True))


def show_everything(paths: Mapping[str, str], settings: Sequence[str]) -> None:
    print("\neverything: WeightWatcher with mp_fit, randomize and ERG, once")
    print(f"{'':<34} {'esdmon, s':>9} {'peer, s':>8} {'wall':>6}")
    for setting in settings:
        ratios = []
        for name, path in paths.items():
            taken = in_process("everything", path, setting=setting)
            ours, theirs = taken["esdmon"], taken["WeightWatcher"]
            ratios.append(theirs / ours)
            print(f"{setting:<16} {name:<17} {ours:9.2f} {theirs:8.1f} {ratios[-1]:6.1f}", flush=True)
        print(f"{setting:<16} {'geometric mean':<35} {statistics.geometric_mean(ratios):6.1f}   limit 40", flush=True)


def show_memory(paths: Mapping[str, str]) -> None:
    print("\nmemory above what was held before, at most")
    print(f"{'':<16} {'weights, MiB':>12} {'esdmon, MiB':>12} {'WeightWatcher, MiB':>18} {'share':>6}")
    for name, path in paths.items():
        ours, theirs = (in_process(f"memory of {tool}", path, setting="memory") for tool in ("esdmon", "WeightWatcher"))
        share = ours["peak"] / theirs["peak"]
        print(
            f"{name:<16} {ours['weights']:12.0f} {ours['peak']:12.1f} {theirs['peak']:18.1f} {share:6.3f}", flush=True
        )
    print("limit 0.2")


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("alpha", "speed", "memory", "everything"), help="one of the tables")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="3 repeats, and everything with the default threads only")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.model, options.repeats)
        return
    print(f"{os.cpu_count()} CPUs, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        paths = save_models(Path(folder))
        tables: dict[str, Callable[[], None]] = {
            "alpha": lambda: show_alphas(paths),
            "speed": lambda: show_speed(paths, min(options.repeats, 3) if options.quick else options.repeats),
            "memory": lambda: show_memory(paths),
            "everything": lambda: show_everything(
                paths, ["default threads"] if options.quick else ["one thread", "default threads"]
            ),
        }
        for name, show in tables.items():
            if options.only in (None, name):
                show()


if __name__ == "__main__":
    main()
