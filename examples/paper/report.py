"""Write the results of the experiments: tables in Markdown, figures, and all numbers as JSON."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

import esdmon
from esdmon.spectrum import Phase
from examples.paper import figures, networks
from examples.paper.figures import LAYERS
from examples.paper.training import Result

TRAINED = 0.8
"""Training accuracy below which a run counts as not trained: it says nothing about generalisation."""
PUBLISHED_BATCHES: dict[float, str] = {
    500: "random-like, 1.00",
    250: "random-like, 1.00",
    100: "bleeding-out, .87",
    50: "bulk+spikes, .80",
    32: "bulk+spikes, .74",
    16: "bulk+spikes, .60",
    8: "bulk-decay, .44",
    4: "bulk-decay, .29",
    2: "heavy-tailed, 0",
}
"""FC1 of MiniAlexNet on CIFAR-10: phase and MP soft rank (Martin & Mahoney 2021, §7, and their notebooks)."""
PUBLISHED_RATES: dict[float, str] = {
    0.00128: "random-like",
    0.00256: "random-like",
    0.01: "bleeding-out",
    0.02: "bulk+spikes",
    0.04: "bulk-decay",
    0.08: "bulk-decay",
    0.16: "heavy-tailed",
}
"""FC1 of the same at batch size 64, by eye (github.com/Zachary-Stone-Berkeley/Learning_Rate_Experiments)."""

Results = Mapping[str, Sequence[Result]]
Row = Sequence[object]


def write_report(results: Results, out: Path) -> str:
    """Write `report.md`, `report.json` and the figures into a folder; return the text of `report.md`."""
    every = list({result.path: result for runs in results.values() for result in runs}.values())
    trained = _trained(every)
    figures.phases(trained, out / "phases.png")
    if "batch-size" in results:
        runs = _trained(results["batch-size"])
        figures.sweep(runs, "batch_size", out / "batch_size.png", title="Generated images, learning rate .004")
        figures.histories(
            {f"batch {run.recipe.batch_size}": run for run in runs if run.recipe.seed == 0}, out / "epochs.png"
        )
    if "learning-rate" in results:
        runs = _trained(results["learning-rate"])
        figures.sweep(runs, "lr", out / "learning_rate.png", title="Generated images, batch size 64")
    sections = [section for section in (*_sections(results), _reached(trained, len(every))) if section]
    text = "\n\n".join(sections) + "\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    numbers = [_numbers(result) for result in every]
    (out / "report.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return text


def _trained(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.train_accuracy >= TRAINED]


def _sections(results: Results) -> Iterator[str]:
    yield _initialisation()
    if "batch-size" in results:
        yield "## Batch size, small AlexNet on generated images\n\n" + _sweep_table(
            results["batch-size"], "batch_size", PUBLISHED_BATCHES
        )
        yield _falls(_trained(results["batch-size"]))
        yield "## Shuffled elements, and where eigenvectors live\n\n" + _null_table(results["batch-size"])
    if "learning-rate" in results:
        yield "## Learning rate at batch size 64\n\n" + _sweep_table(results["learning-rate"], "lr", PUBLISHED_RATES)
    for name, runs in results.items():
        if name not in ("batch-size", "learning-rate"):
            yield f"## {name}\n\n" + _run_table(runs)


def _initialisation() -> str:
    """Compare MiniAlexNet before training with the Marchenko-Pastur law."""
    readings = []
    for seed in range(5):
        torch.manual_seed(seed)
        readings.append(esdmon.analyze(networks.mini_alexnet(), layers=LAYERS))
    rows = []
    for layer in LAYERS:
        layers = [report[layer] for report in readings]
        ranks = [reading.measures["stable_rank"] for reading in layers]
        entropies = [reading.measures["matrix_entropy"] for reading in layers]
        nulls = layers[0].nulls
        rows.append(
            (
                layer.upper(),
                f"{layers[0].N} × {layers[0].M}",
                _range(ranks, ".1f"),
                f"{nulls['stable_rank']:.1f}",
                _range(entropies, ".4f"),
                f"{nulls['matrix_entropy']:.4f}",
                ", ".join(sorted({reading.phase.value for reading in layers})),
            )
        )
    header = ("layer", "N × M", "stable rank", "law", "entropy", "law", "phase")
    return "## MiniAlexNet before training, five seeds\n\n" + _table(header, rows)


def _sweep_table(runs: Sequence[Result], setting: str, published: Mapping[float, str]) -> str:
    grouped: dict[float, list[Result]] = {}
    for run in runs:
        grouped.setdefault(getattr(run.recipe, setting), []).append(run)
    header = [setting.replace("_", " "), "published"]
    header += [
        f"{layer.upper()}: {what}" for layer in LAYERS for what in ("phase", "soft rank", "stable rank", "spikes")
    ]
    header += ["training accuracy", "test accuracy"]
    rows = []
    for value, group in grouped.items():
        cells: list[object] = [f"{value:g}", published.get(value, "")]
        untrained = "" if _trained(group) else " (did not train)"
        for layer in LAYERS:
            cells += [_phases(group, layer) + untrained]
            cells += [
                _range([run.measure(layer, name) for run in group], form)
                for name, form in (("mp_soft_rank", ".2f"), ("stable_rank", ".1f"), ("n_spikes", ".0f"))
            ]
        cells += [_range([getattr(run, name) for run in group], ".3f") for name in ("train_accuracy", "test_accuracy")]
        rows.append(cells)
    return _table(header, rows)


def _falls(runs: Sequence[Result]) -> str:
    """List where MP soft rank or stable rank does not fall with the batch size, for each seed."""
    lines = []
    for layer in LAYERS:
        for name in ("mp_soft_rank", "stable_rank"):
            rises = []
            for seed in sorted({run.recipe.seed for run in runs}):
                own = sorted((run for run in runs if run.recipe.seed == seed), key=lambda run: -run.recipe.batch_size)
                rises += [
                    f"{before.recipe.batch_size} → {after.recipe.batch_size} (seed {seed})"
                    for before, after in pairwise(own)
                    if after.measure(layer, name) > before.measure(layer, name)
                ]
            lines.append(f"- {layer.upper()}, {name.replace('_', ' ')}: {', '.join(rises) or 'falls at every step'}")
    return "As the batch is made smaller, these rise instead of falling:\n\n" + "\n".join(lines)


def _null_table(runs: Sequence[Result]) -> str:
    header = ["run", "layer", "soft rank", "shuffled", "stable rank", "shuffled", "entropy", "shuffled", "spikes"]
    header += ["shuffled", "localisation: bulk", "spikes", "participation: bulk", "spikes"]
    rows = []
    for run in runs:
        if run.recipe.seed == 0:
            for layer in LAYERS:
                cells: list[object] = [f"batch {run.recipe.batch_size}", layer.upper()]
                for name, form in (
                    ("mp_soft_rank", ".2f"),
                    ("stable_rank", ".1f"),
                    ("matrix_entropy", ".4f"),
                    ("n_spikes", ".0f"),
                ):
                    cells += [_show(run.layers[layer].get(name), form), _show(run.shuffled[layer].get(name), form)]
                for name in ("localization", "participation"):
                    cells += [_show(run.layers[layer].get(f"{name}_{part}"), ".2f") for part in ("bulk", "spikes")]
                rows.append(cells)
    return _table(header, rows)


def _run_table(runs: Sequence[Result]) -> str:
    header = ("run", "layer", "phase", "soft rank", "stable rank", "spikes", "alpha", "training", "test")
    rows = []
    for run in runs:
        for layer, record in run.layers.items():
            if record["M"] < 64:
                continue
            alpha = _show(record.get("alpha"), ".2f")
            rows.append(
                (
                    run.recipe.name,
                    layer,
                    run.phases[layer].phase.value if layer in run.phases else record["status"],
                    *(
                        _show(record.get(name), form)
                        for name, form in (("mp_soft_rank", ".2f"), ("stable_rank", ".1f"), ("n_spikes", ".0f"))
                    ),
                    alpha if layer in run.phases and run.phases[layer].alpha_is_meaningful else f"({alpha})",
                    f"{run.train_accuracy:.3f}",
                    f"{run.test_accuracy:.3f}",
                )
            )
    return _table(header, rows)


def _reached(trained: Sequence[Result], tried: int) -> str:
    """List the phases that each layer has reached, and the runs."""
    rows = []
    for layer in LAYERS:
        found = figures.reached(trained, layer)
        rows += [
            (layer.upper(), phase.value, found[phase].recipe.name if phase in found else f"not reached in {tried} runs")
            for phase in Phase
            if phase is not Phase.UNCLASSIFIED
        ]
    return "## Phases reached\n\n" + _table(("layer", "phase", "run"), rows)


def _numbers(result: Result) -> dict[str, object]:
    names = ("train_accuracy", "test_accuracy", "diverged", "seconds", "layers")
    return {"recipe": asdict(result.recipe)} | {name: getattr(result, name) for name in names}


def _phases(group: Iterable[Result], layer: str) -> str:
    counts = Counter(run.phases[layer].phase.value for run in group if layer in run.phases)
    return ", ".join(phase if len(counts) == 1 else f"{phase} {count}" for phase, count in counts.most_common())


def _range(values: Iterable[float], form: str) -> str:
    """Format median and range; a single number if all are equal."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return "–"
    middle = format(median(finite), form)
    ends = [format(finite[0], form), format(finite[-1], form)]
    return middle if ends[0] == ends[1] else f"{middle} [{ends[0]}, {ends[1]}]"


def _show(value: float | None, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def _table(header: Sequence[str], rows: Iterable[Row]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
