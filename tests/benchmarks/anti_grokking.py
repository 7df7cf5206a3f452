"""Train a network that first memorises its examples, generalises late, and is then trained much longer.

    python -m tests.benchmarks.anti_grokking train [--minutes 60] [--decay 0] [--out runs/anti_grokking]
    python -m tests.benchmarks.anti_grokking draw [--out runs/anti_grokking]

An MLP 256-200-200-10 on 1 000 of scikit-learn's digits, begun at eight times the usual scale, with a squared loss on
one-hot labels and AdamW: the recipe of grokking on images (Liu, Michaud, Tegmark, "Omnigrok", arXiv:2210.01117).
Trained on without weight decay, test accuracy falls again much later, while the training accuracy stays at 100 %,
with correlation traps as a first witness and alpha as a second (arXiv:2602.02859, on MNIST, to 10^7 steps).

`train` writes loss and accuracy to `curves.csv` and all that esdmon sees to `esdmon.jsonl`; `draw` makes one picture
of both.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import esdmon
from esdmon import schedule
from esdmon.cli.digits import digits

_TRAINED = 1000
_BATCH = 200
_SCALE = 8.0
_EVERY = 20_000  # steps between readings, once those of the logarithmic schedule are rarer


def network() -> nn.Sequential:
    """Return the MLP at eight times the usual scale."""
    model = nn.Sequential(nn.Linear(256, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(_SCALE)
    return model


def accuracy_and_loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return both on a set of examples."""
    with torch.no_grad():
        out = model(x)
        loss = functional.mse_loss(out, functional.one_hot(y, 10).float())
        return float((out.argmax(1) == y).float().mean()), float(loss)


def train(folder: Path, *, minutes: float, decay: float, rate: float, seed: int) -> None:
    """Train until the time is up."""
    torch.manual_seed(seed)
    x, y = digits()
    x = x.flatten(1)
    order = torch.randperm(len(x))
    inside, outside = order[:_TRAINED], order[_TRAINED:]
    x_train, y_train, targets = x[inside], y[inside], functional.one_hot(y[inside], 10).float()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    when = schedule.union(schedule.per_decade(15), _EVERY)
    end = time.monotonic() + 60 * minutes
    path = folder / "esdmon.jsonl"
    path.unlink(missing_ok=True)
    with (
        (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file,
        esdmon.watch(model, optimizer, every=when, budget=None, sinks=f"jsonl:{path}"),
    ):
        rows = csv.writer(file)
        rows.writerow(["step", "train_accuracy", "train_loss", "test_accuracy", "test_loss"])
        step = 0
        while time.monotonic() < end:
            for indices in torch.randperm(_TRAINED).view(-1, _BATCH):
                optimizer.zero_grad(set_to_none=True)
                functional.mse_loss(model(x_train[indices]), targets[indices]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                if when(step):
                    train_now = accuracy_and_loss(model, x_train, y_train)
                    rows.writerow([step, *train_now, *accuracy_and_loss(model, x[outside], y[outside])])
                    file.flush()


def draw(folder: Path) -> None:
    """Draw accuracy, loss, alpha and traps on one axis of steps, with the alerts."""
    from matplotlib.figure import Figure

    with (folder / "curves.csv").open(encoding="utf-8") as file:
        curves = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    records: list[dict[str, Any]] = [json.loads(line) for line in (folder / "esdmon.jsonl").open(encoding="utf-8")]
    layers = [record for record in records if record["kind"] == "layer" and record["status"] == "ok"]
    alerts = [record for record in records if record["kind"] == "alert" and record["state"] == "firing"]
    steps = [row["step"] for row in curves]
    figure = Figure(figsize=(9, 10), layout="constrained")
    top, losses, alphas, traps = figure.subplots(4, 1, sharex=True)
    for which, colour in (("train", "C7"), ("test", "C0")):
        top.plot(steps, [row[f"{which}_accuracy"] for row in curves], color=colour, label=which)
        losses.plot(steps, [row[f"{which}_loss"] for row in curves], color=colour, label=which)
    top.set(ylabel="accuracy", xscale="log", ylim=(0, 1.02), title="1 000 digits, MLP 256-200-200-10")
    losses.set(ylabel="squared loss", yscale="log")
    for place, name in enumerate(dict.fromkeys(record["name"] for record in layers)):
        own = [record for record in layers if record["name"] == name and record.get("alpha") is not None]
        at = [record["step"] for record in own]
        alphas.plot(at, [record["alpha"] for record in own], color=f"C{place}", alpha=0.3)
        sure = [record if record.get("alpha_is_meaningful") else None for record in own]
        alphas.plot(at, [r["alpha"] if r else float("nan") for r in sure], color=f"C{place}", label=name)
        traps.plot(at, [record.get("trap") for record in own], color=f"C{place}", label=name)
    alphas.axhline(2, color="0.5", linestyle=":")
    alphas.set(ylabel="alpha (faint: not meaningful)", ylim=(1, 9))
    traps.axhline(1, color="0.5", linestyle=":")
    traps.set(ylabel="trap", xlabel="step")
    for alert in alerts:
        colour = "C3" if alert["severity"] != "info" else "0.6"
        for axes in (top, losses, alphas, traps):
            axes.axvline(max(1, alert["step"]), color=colour, linewidth=0.8, alpha=0.6)
        top.text(alert["step"], 0.02, f"{alert['rule']} {alert['layer'] or ''}", rotation=90, fontsize=7, va="bottom")
    for axes in (top, losses, alphas, traps):
        axes.legend(loc="upper left", fontsize=8)
    figure.savefig(folder / "anti_grokking.png", dpi=110)
    for alert in alerts:
        print(f"step {alert['step']}: {alert['severity']} {alert['rule']} {alert['layer']}: {alert['message']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "draw"))
    parser.add_argument("--out", type=Path, default=Path("runs/anti_grokking"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.what == "draw":
        draw(options.out)
    else:
        train(options.out, minutes=options.minutes, decay=options.decay, rate=options.rate, seed=options.seed)


if __name__ == "__main__":
    main()
