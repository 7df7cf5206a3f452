"""Figures of the experiments, like those of the paper."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from esdmon.spectrum import Phase
from examples.batch_size_sweep import draw_spectrum
from examples.paper.training import Result

LAYERS = ("fc1", "fc2")
_LAYER_COLOURS = {"fc1": "#1f5fa8", "fc2": "#c0392b"}
_QUANTITIES = {
    "mp_soft_rank": "MP soft rank",
    "stable_rank": "stable rank",
    "n_spikes": "spikes above the edge",
}
_MARGINS = {"left": 0.02, "right": 0.99, "bottom": 0.17, "top": 0.95, "hspace": 0.68, "wspace": 0.06}
Value = Callable[[Result], float]


def reached(results: Iterable[Result], layer: str) -> dict[Phase, Result]:
    """Return for each phase a run in which a layer ended in it: from a sweep if possible, by confidence."""
    best: dict[Phase, Result] = {}
    for result in results:
        if layer in result.phases:
            phase = result.phases[layer].phase
            best[phase] = max(best.get(phase, result), result, key=lambda each: _preference(each, layer))
    return best


def _preference(result: Result, layer: str) -> tuple[bool, float]:
    recipe = result.recipe
    plain = recipe.network == "small AlexNet" and not (recipe.weight_decay or recipe.label_noise)
    return plain and (recipe.batch_size == 64 or recipe.lr == 0.004), result.phases[layer].confidence


def phases(results: Sequence[Result], path: Path) -> None:
    """Draw FC1 and FC2 in each of the 5+1 phases; the panel of a phase that no run reached is empty."""
    figure = Figure(figsize=(19, 7.2))
    wanted = [phase for phase in Phase if phase is not Phase.UNCLASSIFIED]
    panels = figure.subplots(len(LAYERS), len(wanted), gridspec_kw=_MARGINS)
    for row, layer in zip(panels, LAYERS, strict=True):
        found = reached(results, layer)
        for axes, phase in zip(row, wanted, strict=True):
            axes.set_title(f"{layer.upper()}: {phase.value}", fontsize=11)
            if phase in found:
                _one_spectrum(axes, found[phase], layer)
            else:
                axes.text(0.5, 0.5, f"not reached\nin {len(results)} runs", ha="center", transform=axes.transAxes)
                axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=90)


def _one_spectrum(axes: Axes, result: Result, layer: str) -> None:
    spectrum = result.spectra[layer]
    if spectrum.bulk is None:
        axes.hist(np.log10(np.maximum(spectrum.eigenvalues, 1e-12 * spectrum.lambda_max)), bins=60, color="#9db7d5")
        axes.set(xlabel="log₁₀ λ", yticks=[])
    else:
        draw_spectrum(axes, spectrum)
    axes.set_xlabel(f"{axes.get_xlabel()}\n{describe(result, layer)}", fontsize=9)


def describe(result: Result, layer: str) -> str:
    """Describe a run and the measures of a layer."""
    recipe = result.recipe
    extra = f", weight decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    lines = [f"{recipe.network}, {recipe.data}", f"batch {recipe.batch_size}, lr {recipe.lr:g}{extra}"]
    if result.phases[layer].phase is Phase.RANK_COLLAPSE:
        rank, count = result.measure(layer, "hard_rank"), result.spectra[layer].m
        return "\n".join([*lines, f"rank {rank:.0f} of {count}"])
    soft_rank, spikes, alpha = (result.measure(layer, name) for name in ("mp_soft_rank", "n_spikes", "alpha"))
    shown = f", α {alpha:.2f}" if result.phases[layer].alpha_is_meaningful else ""
    if math.isnan(spikes):  # no bulk was found
        return "\n".join([*lines, f"no bulk{shown}"])
    plural = "" if spikes == 1 else "s"
    return "\n".join([*lines, f"soft rank {soft_rank:.2f}, {spikes:.0f} spike{plural}{shown}"])


def sweep(results: Sequence[Result], setting: str, path: Path, *, title: str) -> None:
    """Draw soft rank, stable rank, spikes and test accuracy against a setting: median and range over seeds."""
    figure = Figure(figsize=(16, 4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(_QUANTITIES) + 1)
    for axes, (name, label) in zip(panels, _QUANTITIES.items(), strict=False):
        for layer in LAYERS:
            _band(axes, results, setting, _measured(layer, name), colour=_LAYER_COLOURS[layer], label=layer.upper())
        axes.set(xlabel=setting.replace("_", " "), ylabel=label)
        if name == "n_spikes":
            axes.set_yscale("symlog", linthresh=10)
            axes.axhline(9, color="grey", lw=0.8, ls=":")
    panels[0].legend(frameon=False)
    _band(panels[-1], results, setting, lambda result: result.test_accuracy, colour="black", label="test")
    panels[-1].set(xlabel=setting.replace("_", " "), ylabel="test accuracy")
    for axes in panels:
        axes.set_xscale("log")
    figure.savefig(path, dpi=90)


def _measured(layer: str, name: str) -> Value:
    return lambda result: result.measure(layer, name)


def _band(axes: Axes, results: Sequence[Result], setting: str, value: Value, *, colour: str, label: str) -> None:
    grouped: dict[float, list[float]] = {}
    for result in results:
        if not result.diverged:
            grouped.setdefault(getattr(result.recipe, setting), []).append(value(result))
    at = sorted(grouped)
    axes.plot(at, [median(grouped[x]) for x in at], "o-", color=colour, label=label)
    axes.fill_between(at, [min(grouped[x]) for x in at], [max(grouped[x]) for x in at], color=colour, alpha=0.2)


def histories(results: Mapping[str, Result], path: Path) -> None:
    """Draw stable rank, MP soft rank and entropy of FC1 and FC2 by epoch, a line for each named run."""
    names = ("stable_rank", "mp_soft_rank", "matrix_entropy")
    figure = Figure(figsize=(14, 7), layout="constrained")
    for row, layer in zip(figure.subplots(len(LAYERS), len(names)), LAYERS, strict=True):
        for axes, name in zip(row, names, strict=True):
            for label, result in results.items():
                axes.plot(result.history["epoch"]["epoch"], result.history[layer][name], label=label)
            axes.set(xlabel="epoch", ylabel=f"{layer.upper()}: {name.replace('_', ' ')}")
        row[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=90)
