"""A training by a host that has begun the run of a tracker, in a process of its own.

python tests/esdmon_trackers/hosted_run.py HOST TRACKER FOLDER

It prints one JSON object: what the real package reads back from its files.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import esdmon
from tests.esdmon_trackers.tracked_run import read_mlflow, read_swanlab, read_trackio
from tests.rules import ALWAYS

OPTIONS: dict[str, Any] = {"every": 4, "budget": None, "alerts": [ALWAYS]}


def train_transformers(folder: Path, tracker: str) -> dict[str, Any]:
    """The Trainer logs every second step, so that a tracker which counts rows counts other steps."""
    from esdmon_transformers import SpectralMonitor
    from tests.integrations.transformers_runs import trainer

    callback = SpectralMonitor(layers=["*.0.mlp.c_fc"], **OPTIONS)
    fit = trainer(folder, callback, report_to=[tracker], logging_steps=2, run_name="r", project="p")
    fit.train()
    assert callback.monitor is not None
    assert callback.monitor.errors == (), callback.monitor.errors
    history = [row for row in fit.state.log_history if "loss" in row]
    return {"rows": len(history), "ours": [row for row in fit.state.log_history if any("esdmon" in key for key in row)]}


def train_lightning(folder: Path, _tracker: str) -> dict[str, Any]:
    from lightning.pytorch.loggers import MLFlowLogger

    from esdmon_lightning import SpectralMonitor
    from tests.integrations.lightning_runs import Small, batches, trainer

    logger = MLFlowLogger(experiment_name="p", tracking_uri=(folder / "mlruns").as_uri(), run_name="r")
    callback = SpectralMonitor(**OPTIONS)
    trainer(folder, callback, logger=logger).fit(Small(), batches())
    assert callback.monitor is not None
    assert callback.monitor.errors == (), callback.monitor.errors
    return {}


def train_accelerate(folder: Path, tracker: str) -> dict[str, Any]:
    import accelerate

    from esdmon_transformers import tracker_sinks

    accelerator = accelerate.Accelerator(log_with=tracker, project_dir=str(folder), cpu=True)
    accelerator.init_trackers("p", init_kwargs={"trackio": {"name": "r"}, "mlflow": {"run_name": "r"}})
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, sinks=tracker_sinks(accelerator), **OPTIONS) as monitor:
        for step in range(12):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
            accelerator.log({"train/loss": float(step)}, step=step)
    assert monitor.errors == (), monitor.errors
    accelerator.end_training()
    return {}


def read(tracker: str, folder: Path) -> dict[str, Any]:
    """Read the only run of the tracker."""
    if tracker == "mlflow":
        import mlflow

        mlflow.set_tracking_uri((folder / "mlruns").as_uri())
        (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
        return read_mlflow(run.info.run_id)
    return read_trackio("p", "r") if tracker == "trackio" else read_swanlab(folder)


def main(host: str, tracker: str, folder: Path) -> None:
    torch.manual_seed(0)
    if tracker == "mlflow":
        import mlflow

        mlflow.set_tracking_uri((folder / "mlruns").as_uri())
    if tracker == "swanlab":
        import swanlab

        # transformers 5.24 asks SwanLab 0.10 for its run in a way that fails before there is one.
        swanlab.init(project="p", mode="offline", logdir=str(folder / "swanlab"))
    about = globals()[f"train_{host}"](folder, tracker)
    if tracker == "swanlab":
        swanlab.finish()
    print("FOUND", json.dumps(about | read(tracker, folder)))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
