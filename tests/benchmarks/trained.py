"""Compare the classifier with hand-made labels of the spectra of trained layers.

    python -m tests.benchmarks.trained                 # confusion tables of both halves, and every miss
    python -m tests.benchmarks.trained misses FOLDER   # the same, and a picture of the misses that were held back
    python -m tests.benchmarks.trained draw FOLDER     # sheets to label from: no phase and no alpha is on them
    python -m tests.benchmarks.trained collect RUNS    # make tests/data/trained_spectra.npz from runs of examples.paper

The spectra are those of all layers with M >= 64 of the runs that trained. The labels stand in
tests/data/trained_labels.toml, with the reasoning; they were written down, by the paper's definitions and from the
sheets, before any threshold was looked at again. Half of the recipes, chosen by a hash of their names without the seed,
set thresholds; the other half is held back to report on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esdmon.spectrum import classify, mp_density, mp_edges
from tests.fixtures.trained import DATA, SPECTRA, Labelled, confusion, load

MIN_M = 64
TRAINED = 0.8  # training accuracy
PER_SHEET = 16


def collect(runs: Path) -> None:
    """Take the spectra from the results of `python -m examples.paper`."""
    spectra: dict[str, Any] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for path in sorted(runs.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["train_accuracy"] < TRAINED:
            continue
        with np.load(path.with_suffix(".npz")) as file:
            for layer in file.files:
                record = result["layers"][layer]
                if record["M"] >= MIN_M:
                    name = f"{path.stem}/{layer}"
                    spectra[name], shapes[name] = file[layer], (record["N"], record["M"])
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(SPECTRA, shapes=np.array(json.dumps(shapes)), **spectra)
    print(f"{len(spectra)} spectra, {SPECTRA.stat().st_size / 1e6:.2f} MB")


def draw(folder: Path) -> None:
    """Sheets of the spectra that have no label, or of all."""
    every = [one for one in load() if one.phase is None] or load()
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(every), PER_SHEET):
        titled = [(str(number), one) for number, one in enumerate(every[start : start + PER_SHEET], start)]
        _sheet(titled, folder / f"sheet-{start // PER_SHEET:02d}.png")


def _sheet(titled: Sequence[tuple[str, Labelled]], path: Path) -> None:
    """Four spectra to a row: the bulk with the law of noise, and all of λ against its rank, both logarithmic."""
    from matplotlib.figure import Figure

    rows = -(-len(titled) // 4)
    figure = Figure(figsize=(24, 4.3 * rows), layout="constrained")
    for axes, (title, one) in zip(figure.subplots(rows, 8).reshape(-1, 2), titled, strict=False):
        _panel(axes, one, title)
    figure.savefig(path, dpi=62)


def _panel(axes: Any, one: Labelled, title: str) -> None:
    from matplotlib.ticker import NullFormatter

    spectrum = one.spectrum
    bulk = spectrum.bulk
    low, high = mp_edges(spectrum.q)
    sigma2 = float(spectrum.eigenvalues.mean()) if bulk is None else bulk.sigma2
    lam = spectrum.eigenvalues / sigma2
    axes[0].hist(lam, bins=60, range=(0, 2 * high), color="#9db7d5")
    grid = np.linspace(low, high, 300)[1:-1]
    axes[0].plot(grid, mp_density(grid, spectrum.q) * lam.size * 2 * high / 60, color="#c0392b")
    tops = " ".join(f"{value:.3g}" for value in (lam[::-1] / high)[:8])
    above = int((lam > high).sum())
    axes[0].set_title(f"{title}\nM {spectrum.m}, {above} above λ⁺ ({above / lam.size:.1%})", fontsize=10)
    axes[1].loglog(lam[::-1], np.arange(1, lam.size + 1), ".", ms=3)
    axes[1].axvline(high, color="#c0392b", lw=0.8)
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    axes[1].set_title(f"λ/λ⁺: {tops}", fontsize=8)


def report(folder: Path | None = None) -> None:
    """Both halves, and the misses; into a folder a picture of those of the half that was held back."""
    every = load()
    for held_back, title in ((False, "that set thresholds"), (True, "held back")):
        half = [one for one in every if one.held_back is held_back]
        table, share = confusion(half)
        print(f"{len(half)} spectra {title}; rows are labels\n{table}\nagreement {share:.1%}\n")
        misses = [(one, reading) for one in half if (reading := classify(one.spectrum)).phase is not one.phase]
        titled = []
        for one, reading in misses:
            if one.phase is not None:
                print(f"{one.name}: {one.phase.value} ({one.reason}), read as {reading.phase.value}")
                print(f"    {reading.explanation}")
                titled.append((f"{one.phase.value},\nread as {reading.phase.value}", one))
        if held_back and folder is not None and titled:
            _sheet(titled, folder / "misses.png")
        print()


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=("confusion", "misses", "draw", "collect"), default="confusion")
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    if options.what == "confusion":
        report()
    elif options.folder is None:
        parser.error(f"{options.what} needs a folder")
    else:
        {"misses": report, "draw": draw, "collect": collect}[options.what](options.folder)


if __name__ == "__main__":
    main()
