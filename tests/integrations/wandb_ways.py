"""Ways in which people log to Weights & Biases, each with and without esdmon; a script, run in a process of its own.

`python -m tests.integrations.wandb_ways FOLDER` writes `FOLDER/<way>-<with or without>/…/run-*.wandb`, and
`FOLDER/<case>/` for `wandb_cases`. `FOLDER/results.json` holds how many readings each way has written and overwritten,
what each case returned, and what went wrong. One process, since most of the time would be spent on importing torch.
"""

import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wandb
from torch import nn

import esdmon
from esdmon_wandb import WandbSink
from tests.integrations.wandb_cases import CASES, begin

EVERY = 2
Train = Callable[[int], float]
WAYS: dict[str, Callable[[Any, Train], None]] = {}


def way(function: Callable[[Any, Train], None]) -> Callable[[Any, Train], None]:
    """Register a way to log: it takes the run, and a function that does some optimizer steps and returns the loss."""
    WAYS[function.__name__] = function
    return function


@way
def plain(run: Any, train: Train) -> None:
    for _ in range(12):
        run.log({"loss": train(1)})


@way
def step_is_step(run: Any, train: Train) -> None:
    for i in range(12):
        run.log({"loss": train(1)}, step=i)


@way
def step_is_step_logged_before_the_optimizer(run: Any, train: Train) -> None:
    for i in range(12):
        run.log({"i": i}, step=i)
        train(1)


@way
def step_is_epoch(run: Any, train: Train) -> None:
    for epoch in range(4):
        run.log({"val_loss": train(6), "epoch": epoch}, step=epoch)


@way
def sparse_steps(run: Any, train: Train) -> None:
    for i in range(15):
        if i % 5 == 0:
            run.log({"i": i}, step=i)
        train(1)


@way
def steps_that_jump(run: Any, train: Train) -> None:
    for i in (3, 4, 50, 51, 1000):
        run.log({"loss": train(3)}, step=i)


@way
def steps_that_go_back(run: Any, train: Train) -> None:
    """W&B drops rows 1 and 2 without esdmon too."""
    for i in (0, 5, 1, 2, 6):
        run.log({"loss": train(3), "i": i}, step=i)


@way
def accumulated_rows(run: Any, train: Train) -> None:
    for i in range(5):
        run.log({"first": train(1)}, commit=False)
        run.log({"second": train(2)}, commit=False)
        train(2)
        run.log({"third": i})


@way
def several_calls_for_a_step(run: Any, train: Train) -> None:
    for i in range(5):
        run.log({"loss": train(1)}, step=i)
        train(2)
        run.log({"accuracy": i / 5}, step=i)
        train(2)
        run.log({"last": True}, step=i, commit=True)


@way
def committed_at_a_step(run: Any, train: Train) -> None:
    for i in range(8):
        run.log({"loss": train(2)}, step=i, commit=True)


@way
def plain_and_with_steps(run: Any, train: Train) -> None:
    for i in range(4):
        run.log({"loss": train(2)})
        run.log({"val": train(2)}, step=10 * i + 9)


@way
def metrics_with_axes_of_their_own(run: Any, train: Train) -> None:
    run.define_metric("epoch")
    run.define_metric("val/*", step_metric="epoch")
    run.define_metric("val/acc", summary="max")
    for i in range(12):
        run.log({"loss": train(1)})
        if i % 4 == 3:
            run.log({"val/acc": 1 / i, "val/loss": i, "epoch": i // 4})


@way
def an_axis_for_all_that_is_filled_in(run: Any, train: Train) -> None:
    """Lightning and the Trainer define it so; rows of a metric that is not synced lack the axis."""
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    run.define_metric("score", summary="max")
    for i in range(12):
        if i % 3 == 0:
            run.log({"loss": train(1), "trainer/global_step": i})
        else:
            train(1)
            run.log({"score": i})


@way
def watched_by_wandb(run: Any, train: Train) -> None:
    run.watch(MODELS[-1], log="all", log_freq=2, idx=0)
    for _ in range(8):
        run.log({"loss": train(1)})
    run.unwatch(MODELS[-1])


@way
def never(_run: Any, train: Train) -> None:
    train(12)


@way
def at_the_end_only(run: Any, train: Train) -> None:
    run.log({"loss": train(12)}, step=0)


@way
def in_the_summary_only(run: Any, train: Train) -> None:
    run.summary["best"] = train(6)
    run.summary.update({"last": train(6)})


@way
def tests_after_the_monitor_is_closed(run: Any, train: Train) -> None:
    for i in range(4):
        run.log({"loss": train(3)}, step=i)
    train(0)  # closes
    run.log({"test": 1.0}, step=4)
    run.log({"test": 2.0}, step=5, commit=True)
    run.log({"last": 3.0}, step=6)


@way
def media_and_nested_values(run: Any, train: Train) -> None:
    for i in range(4):
        train(3)
        picture = wandb.Image(np.full((4, 4, 3), i, np.uint8))
        histogram = wandb.Histogram(np_histogram=(np.arange(3), np.arange(4.0)))
        run.log({"picture": picture, "weights": histogram, "nested": {"a": {"b": i}}, "text": "ja"})


@way
def from_another_thread(run: Any, train: Train) -> None:
    for i in range(4):
        train(3)
        thread = threading.Thread(target=run.log, args=({"i": i},), kwargs={"step": i})
        thread.start()
        thread.join()


@way
def a_key_like_ours(run: Any, train: Train) -> None:
    for i in range(4):
        run.log({"esdmon": train(3), "esd": i, "step": i})


MODELS: list[nn.Module] = []


def train_and_log(run: Any, log: Callable[[Any, Train], None], sink: WandbSink | None) -> None:
    """Train a small model whose layers change phase in the middle, so that pictures are among what is written."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))
    MODELS.append(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = None
    if sink is not None:
        monitor = esdmon.watch(model, optimizer, every=EVERY, budget=None, sinks=[sink], mode="sync")
    done = 0

    def train(steps: int) -> float:
        nonlocal done
        if not steps and monitor is not None:
            monitor.close()
        loss = torch.zeros(())
        for _ in range(steps):
            loss = (model(torch.randn(16, 64)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if done == 5:
                model[0].weight.data = torch.randn(96, 4) @ torch.randn(4, 64)
            optimizer.step()
            done += 1
            while sink is not None and sink.catch_up():
                pass
        return loss.item()

    log(run, train)
    if monitor is not None:
        monitor.close()
        assert monitor.errors == (), monitor.errors


def with_and_without(name: str, folder: Path) -> tuple[int, int]:
    """Log in a way twice, and return the number of readings that were written, and overwritten."""
    without, place = folder / f"{name}-without", folder / f"{name}-with"
    without.mkdir()
    place.mkdir()
    with begin(without) as run:
        train_and_log(run, WAYS[name], None)
    with begin(place) as run:
        sink = WandbSink(run)
        train_and_log(run, WAYS[name], sink)
    return sink.written, sink.overwritten


def main(folder: Path) -> None:
    """Run all ways and cases."""
    torch.set_num_threads(1)
    logging.getLogger("esdmon").propagate = False
    results: dict[str, dict[str, Any]] = {"done": {}, "failed": {}}
    for name in (*WAYS, *CASES):
        try:
            if name in CASES:
                (folder / name).mkdir()
                results["done"][name] = CASES[name](folder / name)
            else:
                results["done"][name] = with_and_without(name, folder)
        except Exception:  # noqa: BLE001 -- the others are tested nevertheless
            results["failed"][name] = traceback.format_exc()
    wandb.teardown()
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
